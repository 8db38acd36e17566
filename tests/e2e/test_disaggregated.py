"""`busway up` with a worker that prefills and one that decodes: the same answers, and prompts are computed once."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.chaos.history import check
from components.chaos.load import running_load
from components.chaos.slots import find_leaks
from tests.faults.flow import POINTS, SWITCHES, open_flow
from tests.same_text import KINDS, ask_each, open_client

pytestmark = pytest.mark.anyio
CONFIG = Path(__file__).parents[2] / "configs" / "disaggregated.toml"
BLOCK = 16
CASES = [("greedy", length) for length in (1, 15, 16, 17, 255, 256, 257, 2049)]
CASES += [(kind, length) for kind in KINDS if kind != "greedy" for length in (17, 300)]


class System:
    """What `busway up` started, and its workers by role."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.url: str = json.loads((shell.directory / ".busway" / "up.json").read_text())["url"]

    def workers(self) -> dict[str, str]:
        """Return worker by roles, as `busway worker ls` shows them."""
        rows = [line.split() for line in self.run("worker", "ls").splitlines()[1:]]
        return {roles: worker for worker, roles, *_ in rows}

    def run(self, *words: str) -> str:
        done = self.shell.run(*words)
        assert done.returncode == 0, done.stderr
        output: str = done.stdout
        return output

    def names(self) -> list[str]:
        return [line.split()[0] for line in self.run("worker", "ls").splitlines()[1:]]

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the frontend's log lines of requests by their ids."""
        log = (self.shell.directory / ".busway" / "logs" / "frontend-0.log").read_text()
        entries = [json.loads(line) for line in log.splitlines() if '"request.finished"' in line]
        return {entry["request_id"]: entry for entry in entries}

    def metric(self, worker: str, line_start: str) -> float:
        """Return the sum of a worker's metrics that begin so."""
        with urllib.request.urlopen(f"{self.url}/metrics/fleet", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(line_start) and f'"{worker}"' in line)


@pytest.fixture(scope="module")
def system(shared_shell: Any, wait_for: Callable[..., float]) -> System:
    """A running system, as its configuration file says."""
    always = ("--set", "router.disaggregate=always")
    up = shared_shell.start("up", "--config", str(CONFIG), "--port", "0", "--set", "up.nats_port=0", *always)
    wait_for(lambda: "ready in" in shared_shell.output() or up.poll() is not None, explain=shared_shell.output)
    assert up.poll() is None, shared_shell.output()
    return System(shared_shell)


async def test_answers_are_those_of_workers_that_do_all_and_no_transferred_token_is_computed(system: System) -> None:
    workers = system.workers()
    prefill, decode = workers["prefill"], workers["decode"]
    async with open_client(system.url) as client:
        apart = await ask_each(client, CASES, salt="apart")
        computed = system.metric(decode, "busway_worker_prefill_tokens_total")
        assert system.metric(decode, 'busway_worker_fetches_total{outcome="read"') > len(CASES) // 2
        for worker in (prefill, decode):
            assert f"{worker} serves both" in system.run("worker", "set-role", worker, "both")
        together = await ask_each(client, CASES, salt="together")
    for case in CASES:
        assert apart[case].is_like(together[case]), (case, apart[case], together[case])
    log = system.finished()
    for case in CASES:
        entry = log[apart[case].request_id]
        assert (entry["worker"], entry["prefilled_by"]) == (decode, prefill), case
        assert "prefilled_by" not in log[together[case].request_id]
    tails = sum(length % BLOCK for _, length in CASES)
    assert computed <= tails + len(CASES), "beside the first token of each and the tails of prompts, nothing"
    assert system.metric(prefill, "busway_transfer_open_leases") == 0


async def test_roles_decide_and_explain_and_the_log_say_why(system: System) -> None:
    first, second = system.names()
    case = ("greedy", 300)
    said = []
    async with open_client(system.url) as client:
        for number, change in enumerate([(first, "prefill"), (second, "decode"), (first, "decode")]):
            system.run("worker", "set-role", *change)
            said.append((await ask_each(client, [case], salt=f"change-{number}"))[case])
            if number == 1:
                shown = system.run("explain", "What is a KV block?")
    assert all(each.is_like(said[0]) for each in said), said
    assert f"goes to      {first}" in shown
    assert "computes the prompt for one that decodes: router.disaggregate = always: prefilled elsewhere" in shown
    log = (system.shell.directory / ".busway" / "logs" / "router-0.log").read_text()
    assert any('"prefill.placed"' in line and said[1].request_id in line for line in log.splitlines())


async def test_whoever_dies_and_whatever_role_changes_every_text_is_whole(tmp_path: Path) -> None:
    async with open_flow(tmp_path) as flow:
        questions = await flow.questions(200, seed=2)
        async with running_load(flow.system.target(), questions, 8) as load:
            for point in (POINTS[3], POINTS[7]):
                await flow.kill_at(point)
            for number in range(20):
                workers = sorted(flow.workers())
                await flow.set_roles(workers[number % 4], SWITCHES[number % len(SWITCHES)])
        verdict = check(load.answers)
        assert verdict.is_good, verdict
        assert not await find_leaks(flow.system.config)
