"""Routers are an optimisation: killed under load, they cost time at most, and what they knew is known again."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

NUM_REQUESTS = 120
NUM_CLIENTS = 12
PROMPT = "Once upon a time, in a land of many prefixes, " * 40


class System:
    """What `busway up` started, as its state file tells it."""

    def __init__(self, shell: Any) -> None:
        self._state = shell.directory / ".busway"

    @property
    def url(self) -> str:
        return str(json.loads((self._state / "up.json").read_text())["url"])

    def pid(self, role: str) -> int:
        processes = json.loads((self._state / "up.json").read_text())["processes"]
        return int(next(process["pid"] for process in processes if process["role"] == role))

    def events(self, role: str, event: str) -> list[dict[str, Any]]:
        path = self._state / "logs" / f"{role}-0.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for line in lines if line.startswith("{") if (entry := json.loads(line))["event"] == event]


@pytest.fixture
def system(shell: Any, wait_for: Callable[..., float]) -> System:
    words = ["--engine", "mock", "--workers", "2", "--routers", "1", "--set", "worker.served_name=mock"]
    pace = ["--set", "mock.step_base_s=0.002", "--set", "up.nats_port=0", "--port", "0"]
    up = shell.start("up", *words, *pace)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    assert up.poll() is None, shell.output()
    system = System(shell)
    wait_for(lambda: system.events("router", "model.opened"), explain=shell.output)
    return system


def ask(url: str, number: int) -> int:
    """Return the number of tokens of a completion; any other status than 200 raises."""
    body = {"model": "mock", "prompt": PROMPT + str(number % 5), "max_tokens": 16, "ignore_eos": True}
    headers = {"content-type": "application/json"}
    question = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(question, timeout=120.0) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def test_a_router_killed_under_load_costs_no_request(system: System, wait_for: Callable[..., float]) -> None:
    url, first = system.url, system.pid("router")
    half = threading.Event()
    ask(url, 0)

    def one(number: int) -> int:
        if number == NUM_REQUESTS // 2:
            half.set()
        return ask(url, number)

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = pool.map(one, range(NUM_REQUESTS))
        half.wait(120.0)
        os.kill(first, signal.SIGKILL)
        assert list(answers) == [16] * NUM_REQUESTS
    wait_for(lambda: len(system.events("router", "model.opened")) == 2)
    assert system.pid("router") != first
    assert ask(url, 0) == 16
    replayed = system.events("router", "kv_events.replayed")[-1]
    assert replayed["num_blocks"] > 0
