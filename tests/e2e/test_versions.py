"""Two versions on one bus, as while a fleet is updated: a process of the last release among those of now, and back.

The release is a commit: the oldest one whose workers do all that a frontend of now asks for. Workers of those before it
take no embeddings, and leave grammars and log-probabilities of prompts out without a word.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bus.server import free_port
from tests.unit.bus.test_messages import GOLDEN

RELEASE = "567950ce22d76805c524de6aa6be38a9400a5062"
FIRST_HANDOVER = "0759bef22347e8a5db2c91423390491988be5b87"
"""The oldest commit whose workers hand prefilled prompts over."""
PACKAGES = ("bus", "components", "frontend", "kv_events", "offload", "planner", "nats")
ROOT = Path(__file__).parents[2]
NUM_STREAMS, STREAM_TOKENS = 8, 400
ENGINE = ("worker.engine=mock", "mock.step_base_s=0.01", "worker.grace_s=0.2", "worker.served_name=m")
LONG = (500, 3000)
HANDING_OVER = ("worker.transfer=loopback", "mock.max_batch_tokens=512", "mock.block_size=16")

Wait = Callable[..., float]


def unpack(commit: str, tree: Path) -> Path:
    """Put the packages of a commit into `tree`, from the history of this repository."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit, *PACKAGES], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(
            f"{commit[:8]} is not in the history here (git fetch --unshallow?): {archive.stderr.decode()[:200]}"
        )
    subprocess.run(["tar", "--extract", "--directory", tree], input=archive.stdout, check=True)
    return tree


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the release."""
    return unpack(RELEASE, tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def first_handover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the first version that hands over."""
    return unpack(FIRST_HANDOVER, tmp_path_factory.mktemp("handover"))


class Fleet:
    """Processes of two versions in one namespace."""

    def __init__(self, shell: Any, wait_for: Wait, nats_url: str, namespace: str) -> None:
        self._shell = shell
        self._wait_for = wait_for
        self._settings = (f"bus.url={nats_url}", f"namespace={namespace}", "log.format=json")
        self._url = ""
        self.metrics_port = 0
        """Of the worker that was started last."""

    def start(self, kind: str, tree: Path = ROOT, *more: str) -> subprocess.Popen[str]:
        """Start a process of a version with some more settings, and wait until it serves."""
        settings = [*self._settings, *{"worker": ENGINE, "frontend": ("frontend.port=0",)}.get(kind, ()), *more]
        words = [word for setting in settings for word in ("--set", setting)]
        if kind == "worker":
            self.metrics_port = free_port()
            words += ["--metrics-port", str(self.metrics_port)]
        process: subprocess.Popen[str] = self._shell.start(kind, *words, tree=tree)
        output = self._shell.output
        self._wait_for(lambda: f'"{kind}.started"' in output() or process.poll() is not None, explain=output)
        assert process.poll() is None, output()
        if found := re.search(r'"url": ?"(http[^"]+)"', output()):
            self._url = found[1]
        return process

    def wait(self) -> None:
        """Wait until the frontend serves the model."""

        def lists_model() -> bool:
            with urllib.request.urlopen(f"{self._url}/v1/models", timeout=60.0) as answer:
                return b'"m"' in answer.read()

        self._wait_for(lists_model, explain=self._shell.output)

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Return what a request brought; fail for any other status than 200."""
        data = json.dumps({"model": "m", **body}).encode()
        question = urllib.request.Request(f"{self._url}/v1/{path}", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(question, timeout=120.0) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path}: {error.code} {error.read().decode()}")

    def answers(self) -> list[object]:
        """Return the content of an answer of each kind."""
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Who drives the bus?"}], "max_tokens": 40}
        driver = {"properties": {"driver": {"enum": ["Ada", "Grace"]}}, "required": ["driver"]}
        schema = {"type": "object", "additionalProperties": False, **driver}
        rule = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        structured = self.ask("chat/completions", {**chat, "response_format": rule})["choices"][0]["message"]["content"]
        assert json.loads(structured)["driver"] in ("Ada", "Grace")
        choices = self.ask("chat/completions", {**chat, "n": 2, "seed": 7, "stop": ["\n"]})["choices"]
        plain = self.ask("completions", {"prompt": list(range(300, 500)), "max_tokens": 20})
        vectors = self.ask("embeddings", {"input": ["a bus", "a tram"]})["data"]
        return [
            structured,
            [choice["message"]["content"] for choice in choices],
            (plain["choices"][0]["text"], [plain["usage"][count] for count in ("prompt_tokens", "completion_tokens")]),
            [vector["embedding"] for vector in vectors],
        ]

    def continue_long(self, num_tokens: int) -> str:
        """Return what follows a long prompt."""
        body = {"prompt": [300 + at % 90 for at in range(num_tokens)], "max_tokens": 20, "ignore_eos": True}
        return str(self.ask("completions", body)["choices"][0]["text"])

    def num_fetched(self) -> float:
        """Return how many prompts the last worker took over with their blocks."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60.0) as answer:
            found = re.search(rb'busway_worker_fetches_total\{outcome="read"\} (\S+)', answer.read())
        return float(found[1]) if found else 0.0

    def stream(self, number: int) -> str:
        """Return the text of a long completion."""
        body = {"prompt": f"Story {number}: ", "max_tokens": STREAM_TOKENS, "ignore_eos": True}
        return str(self.ask("completions", body)["choices"][0]["text"])


@pytest.fixture
def fleet(shell: Any, wait_for: Wait, nats_url: str, namespace: str) -> Fleet:
    return Fleet(shell, wait_for, nats_url, namespace)


@pytest.fixture(scope="module")
def expected(shared_shell: Any, wait_for: Wait, nats_url: str) -> list[object]:
    """What processes of now answer."""
    fleet = Fleet(shared_shell, wait_for, nats_url, "t-versions")
    for kind in ("worker", "router", "frontend"):
        fleet.start(kind)
    fleet.wait()
    answers = fleet.answers()
    shared_shell.close()
    return answers


@pytest.mark.parametrize("old", ["worker", "router", "frontend"])
def test_a_process_of_the_release_serves_among_those_of_now(
    old: str, fleet: Fleet, release: Path, expected: list[object]
) -> None:
    for kind in ("worker", "router", "frontend"):
        fleet.start(kind, release if kind == old else ROOT)
    fleet.wait()
    assert fleet.answers() == expected


@pytest.mark.parametrize("old", ["prefill", "decode"])
def test_blocks_go_from_one_version_to_another(old: str, fleet: Fleet, first_handover: Path, wait_for: Wait) -> None:
    """Also long prompts, of which workers of now offer a part before the rest is computed."""
    fleet.start("frontend")
    alone = fleet.start("worker")
    fleet.wait()
    texts = [fleet.continue_long(length) for length in LONG]
    alone.send_signal(signal.SIGTERM)
    wait_for(lambda: alone.poll() is not None)
    for role in ("prefill", "decode"):
        fleet.start("worker", first_handover if role == old else ROOT, f'worker.roles=["{role}"]', *HANDING_OVER)
    wait_for(lambda: fleet.continue_long(100) and fleet.num_fetched())
    assert [fleet.continue_long(length) for length in LONG] == texts
    assert fleet.num_fetched() > len(LONG)


def test_a_fleet_is_updated_and_put_back_under_load(fleet: Fleet, release: Path, wait_for: Wait) -> None:
    """A worker that is told to end, and one that dies: the other version goes on with their streams."""
    fleet.start("frontend")
    quick = fleet.start("worker", ROOT, "mock.step_base_s=0")
    fleet.wait()
    with ThreadPoolExecutor(NUM_STREAMS) as clients:
        quiet = list(clients.map(fleet.stream, range(NUM_STREAMS)))
        quick.send_signal(signal.SIGTERM)
        wait_for(lambda: quick.poll() is not None)
        leaving = fleet.start("worker", release)
        for coming, end in ((ROOT, signal.SIGTERM), (release, signal.SIGKILL)):
            streams = [clients.submit(fleet.stream, number) for number in range(NUM_STREAMS)]
            worker = fleet.start("worker", coming)
            if any(stream.done() for stream in streams):  # a slow start: others, of both versions
                assert [stream.result() for stream in streams] == quiet
                streams = [clients.submit(fleet.stream, number) for number in range(NUM_STREAMS)]
            os.kill(leaving.pid, end)
            assert [stream.result() for stream in streams] == quiet
            wait_for(lambda: leaving.poll() is not None)  # noqa: B023 - waited for at once
            leaving = worker


def test_messages_of_now_are_read_by_the_release(release: Path) -> None:
    """Those that it does not know are none of its business."""
    program = f"""
import importlib
from bus.codec import codec
for module, name, data in {golden_of_now()!r}:
    try:
        known = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        known = None
    if known is not None:
        codec(known).decode(bytes.fromhex(data))
        print(name)
"""
    environment = {**os.environ, "PYTHONPATH": str(release)}
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert {"GenerateJob", "StepBatch", "WorkerCard", "WorkerLoad", "KvBatch", "RouteBatch"} <= set(run.stdout.split())


def golden_of_now() -> list[tuple[str, str, str]]:
    """Return module, name and bytes of each message."""
    return [(type(message).__module__, type(message).__name__, data) for message, data in GOLDEN]
