"""Workers that die, freeze and leave under load: the part of the matrix that every test run does."""

import signal
import time
from typing import Any

import anyio
import pytest

from components.chaos.ask import ask
from components.chaos.history import gap_across
from tests.faults.loads import watch_loads
from tests.faults.system import STEP_S, make_questions, seconds_of_day, until

pytestmark = pytest.mark.anyio


async def test_a_killed_workers_streams_go_on_at_once(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system()
    victim = str(system.events("worker-0", "worker.started")[0]["worker"])
    async with under_load(system, streams=96) as load, watch_loads(system.config) as loads:
        await anyio.sleep(2.0)
        await until(lambda: loads.held.get(victim, 0) > 0)
        at, clock = time.monotonic(), time.time()
        system.kill("worker-0")
        await until(lambda: bool(system.events("frontend-0", "worker.disconnected")))
        await anyio.sleep(0.5)
    told = min(seconds_of_day(event) for event in system.events("frontend-0", "worker.disconnected"))
    gap_s = gap_across(load.answers, at)
    measured("1", f"detected in {1e3 * (told - clock):.0f} ms, gap {1e3 * gap_s:.0f} ms")
    assert told - clock < 0.05 + stalls.slack_s
    assert gap_s < 0.25 + STEP_S + stalls.slack_s


async def test_a_routers_requests_do_not_go_back_to_a_worker_that_is_silent(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system(routers=1)
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        with system.frozen("worker-0"):
            await anyio.sleep(3.5)
            thawed_at = time.monotonic()
        await anyio.sleep(0.5)
    frozen = [a for a in load.answers if a.ended_at > at and a.started_at < thawed_at]
    gap_s = max(answer.longest_gap_s for answer in frozen)
    measured("4b", f"longest gap or wait for a first token {1e3 * gap_s:.0f} ms")
    assert gap_s < 1.5 + STEP_S + stalls.slack_s


async def test_a_frozen_workers_streams_go_on_elsewhere(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system()
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        with system.frozen("worker-0"):
            await anyio.sleep(5.0)
        await anyio.sleep(0.5)
    gap_s = gap_across(load.answers, at)
    measured("4", f"gap {1e3 * gap_s:.0f} ms")
    assert gap_s < 1.2 + STEP_S + stalls.slack_s


async def test_a_worker_that_leaves_is_not_noticed(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system(settings={"worker.grace_s": 0.1})
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        system.send("worker-0", signal.SIGTERM)
        await anyio.to_thread.run_sync(system.processes["worker-0"].wait)
        await anyio.sleep(0.5)
    handed_back = [event["num_handed_back"] for event in system.events("worker-0", "worker.drained")]
    gap_s = max(gap_across(load.answers, at + share / 10) for share in range(10))
    measured("5", f"{handed_back[0]} requests handed over, gap {1e3 * gap_s:.0f} ms")
    assert system.processes["worker-0"].returncode == 0
    assert gap_s < 0.1 + STEP_S + stalls.slack_s


async def test_a_request_in_prefill_is_prefilled_elsewhere(open_system: Any, measured: Any, stalls: Any) -> None:
    prefill_s = 1.0
    system = await open_system(workers=2, settings={"mock.prefill_base_s": prefill_s})
    target = system.target()
    (question,) = await make_questions(target, 1)
    answers: list[Any] = []
    async with anyio.create_task_group() as tasks:

        async def keep() -> None:
            answers.append(await ask(target, question))

        tasks.start_soon(keep)
        await anyio.sleep(0.2)
        busy = await _who_works(system)
        at = time.monotonic()
        system.kill(busy)
    first_s = answers[0].first_at - at - prefill_s
    measured("2", f"first token {1e3 * first_s:.0f} ms after its prefill")
    assert answers[0].text == question.expected
    assert first_s < 0.5 + stalls.slack_s


async def _who_works(system: Any) -> str:
    """Return the name of the only worker that holds a request."""
    names = {str(system.events(name, "worker.started")[0]["worker"]): name for name in ("worker-0", "worker-1")}
    async with watch_loads(system.config) as loads:
        await until(lambda: loads.total == 1)
        (busy,) = [names[worker] for worker, num_held in loads.held.items() if num_held]
    return busy
