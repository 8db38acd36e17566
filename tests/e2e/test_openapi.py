"""A fuzzer that reads /openapi.json finds no server error, no undocumented status, and nothing but what it says."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SETTINGS = ("--set", "up.nats_port=0", "--set", "frontend.default_max_tokens=64")
"""Requests that name no bound on their output would fill the context."""
NOT_FUZZED = ("/metrics", "/metrics/fleet")


def test_a_fuzzer_finds_nothing(shell: Any, wait_for: Callable[..., float], tmp_path: Path) -> None:
    up = shell.start("up", "--engine", "mock", "--port", "0", *SETTINGS)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    url = json.loads((shell.directory / ".busway" / "up.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
        document = json.load(answer)
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Body") and "model" in schema.get("properties", {}):  # so that most requests come to something
            schema["properties"]["model"] = {"const": "busway-tiny"}
            schema["required"] = sorted({*schema.get("required", ()), "model"})
    spec = tmp_path / "openapi.json"
    spec.write_text(json.dumps(document))
    command = ["run", str(spec), "--url", url, "--checks", CHECKS, "--max-examples", "10", "--request-timeout", "60"]
    command += ["--phases", "coverage,fuzzing", "--seed", "7"]
    command += [word for path in NOT_FUZZED for word in ("--exclude-path", path)]
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run([program, *command], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert up.poll() is None
