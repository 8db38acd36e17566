"""What the README tells people to type works as it stands, but for the ports. CI runs `make up` and `make test`."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHELL_LINES = re.findall(r"^\$ (.+)$", "\n".join(re.findall(r"```console\n(.*?)```", README, re.S)), re.M)
BY_CI = {"make up", ". .venv/bin/activate"}
SERVES = {
    "busway run components.meter:UsageMeter": ("component.started", "--set bus.url=nats://127.0.0.1:4222"),
    "busway up --config configs/router.toml": ("ready in", "--port 0 --set up.nats_port=0 --set state_dir=.beside"),
    "busway up --config configs/offload.toml": (
        "ready in",
        "--port 0 --set up.nats_port=0 --set state_dir=.tiers --set offload.disk_bytes=67108864",
    ),
    "busway up --config configs/disaggregated.toml": ("ready in", "--port 0 --set up.nats_port=0 --set state_dir=.pd"),
}
"""Commands that run until they are stopped: what they print when they are up, and what they need to run here."""
SECURE = ["busway up --secure", *(line for line in SHELL_LINES if re.match(r"busway keys (bus|revoke) ", line))]
"""Commands of one system of their own, in this order."""


@pytest.fixture(scope="module")
def addresses(shared_shell: Any, wait_for: Callable[..., float]) -> dict[str, str]:
    """Run the system that the README talks about; return what stands there to what it is here."""
    # In float32: `busway chaos` compares texts, and in bfloat16 one that is computed anew may go on differently.
    up = shared_shell.start("up", "--port", "0", "--set", "up.nats_port=0", "--set", "worker.dtype=float32")
    wait_for(lambda: "ready in" in shared_shell.output() or up.poll() is not None, explain=shared_shell.output)
    assert up.poll() is None, shared_shell.output()
    state = json.loads((shared_shell.directory / ".busway" / "up.json").read_text())
    files = {f" {folder}/": f" {ROOT}/{folder}/" for folder in ("configs", "tests")}
    return {"http://127.0.0.1:8000": state["url"], "nats://127.0.0.1:4222": state["nats_url"], **files}


def translate(text: str, addresses: dict[str, str]) -> str:
    for there, here in addresses.items():
        text = text.replace(there, here)
    return text


def environment(shell: Any) -> dict[str, str]:
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    return dict(shell.environment()) | {"PATH": path}


def test_there_is_something_to_run() -> None:
    assert set(SERVES) <= set(SHELL_LINES)
    assert len(SHELL_LINES) > len(SERVES) + len(BY_CI)


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line not in BY_CI | {*SERVES, *SECURE}])
def test_a_command_does_what_it_says(line: str, shared_shell: Any, addresses: dict[str, str]) -> None:
    done = subprocess.run(
        translate(line, addresses),
        shell=True,
        cwd=shared_shell.directory,
        env=environment(shared_shell),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert '"error":{' not in done.stdout


@pytest.mark.parametrize("line", SERVES)
def test_a_command_serves_until_it_is_stopped(
    line: str, shared_shell: Any, addresses: dict[str, str], wait_for: Callable[..., float]
) -> None:
    is_up, more = SERVES[line]
    process = shared_shell.start(*translate(f"{line} {more}", addresses).split()[1:])
    wait_for(lambda: is_up in shared_shell.output(), explain=shared_shell.output)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, shared_shell.output()


def test_the_python_example_prints_an_answer(shared_shell: Any, addresses: dict[str, str]) -> None:
    (example,) = re.findall(r"```python\n(import asyncio.*?)```", README, re.S)
    done = subprocess.run(
        [sys.executable, "-c", translate(example, addresses)],
        env=environment(shared_shell),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["done"]
    assert "Busway" in answer["text"]


@pytest.mark.parametrize("command", re.findall(r"`(busway (?:config|subjects)[^`]*)`", README))
def test_a_command_in_a_sentence_works(command: str, shared_shell: Any) -> None:
    done = shared_shell.run(*command.split()[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", re.findall(r"^\| `(busway [a-z]+)", README, re.M))
def test_a_named_command_explains_itself(command: str, shared_shell: Any) -> None:
    done = shared_shell.run(*command.split()[1:], "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout


def test_a_guarded_system_gives_out_credentials(shell: Any, wait_for: Callable[..., float]) -> None:
    up, *others = SECURE
    assert up in SHELL_LINES
    assert others
    shell.start(*up.split()[1:], "--engine", "mock", "--port", "0", "--set", "up.nats_port=0")
    wait_for(lambda: "ready in" in shell.output(), explain=shell.output)
    for line in others:
        done = shell.run(*line.split()[1:])
        assert done.returncode == 0, done.stderr
