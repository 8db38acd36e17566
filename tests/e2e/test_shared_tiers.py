"""What workers computed outlives all of them in Redis or S3, and moves between them: the answers stay the same."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.server import free_port

STUB = Path(__file__).parents[1] / "integration" / "offload" / "remote" / "s3_stub.py"
NUM_PROMPTS = 8


class Stores:
    """A Redis and the S3 stub, and the settings that lead to them."""

    def __init__(self, directory: Path) -> None:
        path = directory / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        self.redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.port = free_port()
        self._s3 = subprocess.Popen([sys.executable, str(STUB), str(self.port), str(directory / "faults")])
        self.settings = ["--set", f"offload.redis.url=unix://{path}", "--set", "offload.s3.url=s3://kv-cache/fleet"]

    def close(self) -> None:
        for process in (self.redis, self._s3):
            process.kill()
            process.wait()


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
    stores = Stores(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{stores.port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    yield stores
    stores.close()


WORDS = ("--workers", "2", "--routers", "1", "--port", "0", "--set", "up.nats_port=0")
SETTINGS = {"worker.kv_cache_bytes": 2**24, "offload.host_bytes": 2**26, "worker.dtype": "float32"}
"""What bfloat16 rounds off depends on how a prompt is cut into steps, and so on what was loaded."""
TIERS = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


def prompt(number: int, num_words: int = 250) -> str:
    return " ".join(f"word{index * (number + 1) % 977}" for index in range(num_words))


def ask(url: str, text: str, **fields: str) -> tuple[str, int]:
    """Return the text of a greedy completion, and how many tokens of its prompt were not computed."""
    body = {"model": "busway-tiny", "prompt": text, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    headers = {"content-type": "application/json"}
    question = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(question, timeout=120.0) as answer:
        got = json.load(answer)
    return got["choices"][0]["text"], got["usage"]["prompt_tokens_details"]["cached_tokens"]


def is_ready(url: str) -> bool:
    """Whether a worker is there for whom asks now."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=60.0):
            return True
    except urllib.error.HTTPError:
        return False


def test_fresh_workers_go_on_with_what_killed_ones_computed(
    shell: Any, wait_for: Callable[..., float], stores: Stores
) -> None:
    up = shell.start("up", *WORDS, *TIERS, *stores.settings)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    state = shell.directory / ".busway" / "up.json"

    def workers() -> set[int]:
        processes = json.loads(state.read_text())["processes"]
        return {process["pid"] for process in processes if process["role"] == "worker"}

    def replace_workers() -> None:
        killed = workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(workers() - killed) == 2 and not workers() & killed)
        wait_for(lambda: is_ready(url))

    def num_stored() -> list[int]:
        return [int(count) for count in re.findall(r"(\d+) blocks,", shell.run("cache", "ls").stdout)]

    url = json.loads(state.read_text())["url"]
    cold = [ask(url, prompt(number)) for number in range(NUM_PROMPTS)]
    assert [cached for _, cached in cold] == [0] * NUM_PROMPTS
    wait_for(lambda: min(num_stored(), default=0) >= NUM_PROMPTS * 40, explain=lambda: str(num_stored()))
    for is_redis_alive in (True, False):
        if not is_redis_alive:
            stores.redis.kill()
        replace_workers()
        warm = [ask(url, prompt(number)) for number in range(NUM_PROMPTS)]
        assert [text for text, _ in warm] == [text for text, _ in cold]
        assert any(cached > 500 for _, cached in warm), [cached for _, cached in warm]


def test_a_conversation_that_changes_its_worker_brings_its_blocks_along(
    shell: Any, wait_for: Callable[..., float]
) -> None:
    """By turns, each of two workers answers; the other one's host memory has what came before."""
    settings = ("--set", "offload.peers=true", "--set", "router.mode=round_robin")
    up = shell.start("up", *WORDS, *TIERS, *settings)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    url = json.loads((shell.directory / ".busway" / "up.json").read_text())["url"]

    def num_read() -> int:
        with urllib.request.urlopen(f"{url}/metrics/fleet", timeout=60.0) as answer:
            text = answer.read().decode()
        return int(sum(map(float, re.findall(r'busway_transfer_blocks_total\{process="w-[^"]*"\} (\S+)', text))))

    turns: list[tuple[str, str, int]] = []
    for number in range(10):  # the first ones measure; on a busy machine it may take some more until loading pays
        text = prompt(number, 600)
        for _ in range(3):
            answer, cached = ask(url, text)
            turns.append((text, answer, cached))
            text += f"{answer} and then?"
        if num_read() > 200 and turns[-2][2] > 1500:
            break
    assert num_read() > 200, "from the memory of the other one"
    assert turns[-2][2] > 1500, [cached for *_, cached in turns]
    for number, (text, answer, _) in enumerate(turns[-3:]):
        assert ask(url, text, cache_salt=f"shared with nobody {number}") == (answer, 0)
