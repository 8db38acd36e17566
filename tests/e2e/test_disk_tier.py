"""What a worker computed outlives it on its disk, also when it is killed while it writes: the answers stay the same."""

import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.test_shared_tiers import TIERS, ask, prompt

WORDS = ("--workers", "1", "--port", "0", "--set", "up.nats_port=0", "--set", "offload.disk_bytes=268435456")
NUM_PROMPTS = 6
NUM_KILLS = 2


def test_a_worker_that_is_killed_while_it_stores_leaves_nothing_wrong_on_its_disk(
    shell: Any, wait_for: Callable[..., float]
) -> None:
    up = shell.start("up", *WORDS, *TIERS)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    state = shell.directory / ".busway" / "up.json"
    directory = shell.directory / ".busway" / "offload"
    url = json.loads(state.read_text())["url"]

    def workers() -> set[int]:
        return {each["pid"] for each in json.loads(state.read_text())["processes"] if each["role"] == "worker"}

    def written_at() -> int:
        return max(path.stat().st_mtime_ns for path in directory.glob("*.journal"))

    def num_loaded() -> float:
        with urllib.request.urlopen(f"{url}/metrics/fleet", timeout=60.0) as answer:
            text = answer.read().decode()
        lines = re.findall(r"busway_offload_blocks_total\{([^}]*)\} (\S+)", text)
        return sum(float(count) for labels, count in lines if 'tier="disk"' in labels and 'outcome="loaded"' in labels)

    cold = [ask(url, prompt(number)) for number in range(NUM_PROMPTS)]
    assert [cached for _, cached in cold] == [0] * NUM_PROMPTS
    with ThreadPoolExecutor(4) as clients:
        for kill in range(NUM_KILLS):
            before, [killed] = written_at(), workers()
            others = [clients.submit(ask, url, prompt(20 + 4 * kill + number)) for number in range(4)]
            wait_for(lambda before=before: written_at() > before)
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda killed=killed: workers() - {killed})
            assert all(other.result()[0] for other in others), "they went on with the next worker"
            warm = [ask(url, prompt(number)) for number in range(NUM_PROMPTS)]
            assert [text for text, _ in warm] == [text for text, _ in cold]
    assert any(cached > 500 for _, cached in warm), [cached for _, cached in warm]
    assert num_loaded() > 40
    assert len(os.listdir(directory)) == 2, "each worker took the files of the one before"
