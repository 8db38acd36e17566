"""Requests that kill their worker, that nobody wants any more, or that are too many; restarts of everything."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from bus.codec import codec
from bus.connection import open_bus
from bus.messages.fleet import DeadLetter
from bus.subjects import Subjects
from components.chaos.ask import ask
from components.chaos.history import Question, gap_across
from components.chaos.load import running_load
from tests.faults.loads import watch_loads
from tests.faults.sick.sick_engine import FATAL, HANGING
from tests.faults.system import ROOT, STEP_S, System, make_questions, until

pytestmark = pytest.mark.anyio
SICK = {"PYTHONPATH": f"{Path(__file__).with_name('sick')}:{ROOT}"}


async def start_sick(open_system: Any, **settings: Any) -> System:
    system: System = await open_system(workers=0, frontends=0, settings=settings)
    for number in range(3):
        system.start(f"worker-{number}", environment=SICK)
    system.start("frontend-0")
    await system.wait_ready(3)
    return system


async def test_a_request_that_kills_two_workers_goes_to_no_third(
    open_system: Any, under_load: Any, measured: Any, collect: Any
) -> None:
    system = await start_sick(open_system)
    letters = collect()
    async with open_bus(system.config.bus, Subjects(), name="reader") as bus:
        bus.subscribe(bus.subjects.dead("work"), letters)
        async with under_load(system) as load:
            await anyio.sleep(1.0)
            at = time.monotonic()
            answer = await ask(system.target(), Question((FATAL,) * 9, 8))
            took_s = time.monotonic() - at
            await anyio.sleep(1.0)
        (message,) = await letters.wait(1)
    dead = [name for name in ("worker-0", "worker-1", "worker-2") if system.processes[name].poll() is not None]
    letter = codec(DeadLetter).decode(message.payload)
    measured(
        "22",
        f"{len(dead)} workers lost, {answer.status} after {took_s:.1f} s, "
        f"gap of others {1e3 * gap_across(load.answers, at):.0f} ms",
    )
    assert len(dead) == 2
    assert answer.status == 500
    assert "workers died" in answer.error
    assert letter.code == "request_quarantined"


async def test_a_request_that_makes_the_engine_hang_hurts_only_itself(
    open_system: Any, under_load: Any, measured: Any
) -> None:
    system = await start_sick(open_system, **{"worker.stall_s": 2.0})
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        answer = await ask(system.target(), Question((HANGING,) * 9, 8))
        took_s = time.monotonic() - at
        await anyio.sleep(1.0)
    ended = [name for name in ("worker-0", "worker-1", "worker-2") if system.processes[name].poll() is not None]
    gap_s = max(a.longest_gap_s for a in load.answers if a.ended_at > at)
    measured(
        "22b",
        f"{len(ended)} workers ended themselves, {answer.status} after {took_s:.1f} s, gap of others {gap_s:.1f} s",
    )
    assert len(ended) == 2
    assert all("engine.died" in system.log(name) for name in ended)
    assert answer.status == 500
    assert gap_s < 2 * 2.0 + 1.0


async def test_a_cancel_reaches_work_in_every_state(open_system: Any, measured: Any, stalls: Any) -> None:
    system = await open_system(workers=1, settings={"worker.slots": 2, "mock.prefill_token_s": 0.0005})
    target = system.target()
    decoding, queued = await make_questions(target, 2, max_tokens=2000)
    prefilling = replace(decoding, prompt=tuple(decoding.prompt) * 60)
    tasks = [asyncio.ensure_future(ask(target, question)) for question in (decoding, prefilling)]
    await anyio.sleep(0.3)
    tasks.append(asyncio.ensure_future(ask(target, queued)))
    async with watch_loads(system.config) as loads:
        await until(lambda: loads.total == 2)
        for task in tasks:
            task.cancel()
        freed_s = await loads.wait_at_most(0, 2.0)
    measured("31", f"nothing is held after {1e3 * freed_s:.0f} ms")
    assert freed_s < 0.2 + stalls.slack_s
    (after,) = await make_questions(target, 1, max_tokens=4, seed=5)
    first = await ask(target, after)
    assert first.text == after.expected
    assert first.first_at - first.started_at < 0.5, "the one that was queued takes nobody's time"


async def test_clients_that_leave_free_their_slots(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system(workers=2)
    leaving = await make_questions(system.target(), 24, max_tokens=2000, seed=9)
    async with under_load(system, streams=24), watch_loads(system.config) as loads:
        tasks = [asyncio.ensure_future(ask(system.target(), question)) for question in leaving]
        await until(lambda: loads.total > 40)
        for task in tasks:
            task.cancel()
        freed_s = await loads.wait_at_most(24, 5.0)
    measured("21", f"slots free after {1e3 * freed_s:.0f} ms")
    assert freed_s < 0.2 + stalls.slack_s


async def test_two_of_three_workers_may_die_at_once(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system()
    async with under_load(system, streams=96) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        system.kill("worker-0", "worker-1")
        await anyio.sleep(1.0)
    gap_s = gap_across(load.answers, at)
    measured("6", f"all finish, gap {1e3 * gap_s:.0f} ms")
    assert gap_s < 1.2 + STEP_S


async def test_requests_wait_for_workers_that_come_back(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system(workers=2)
    async with under_load(system, streams=16) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        system.kill("worker-0", "worker-1")
        await anyio.sleep(5.0)
        system.start("worker-2")
        await until(lambda: bool(system.events("worker-2", "worker.started")))
        back_at = time.monotonic()
        await anyio.sleep(1.5)
    ends = [a.gap_began_at + a.longest_gap_s - back_at for a in load.answers if a.gap_began_at < at + 1.0]
    measured("7", f"text comes {max(ends):.2f} s after it is in the pool")
    assert max(ends) < 1.0


async def test_a_job_that_a_dying_worker_had_not_accepted_goes_elsewhere(open_system: Any, measured: Any) -> None:
    system = await open_system(workers=2)
    questions = await make_questions(system.target(), 8, max_tokens=8)
    answers: list[Any] = []

    async def keep(question: Question) -> None:
        answers.append(await ask(system.target(), question))

    async with anyio.create_task_group() as tasks:
        with system.frozen("worker-0"):
            for question in questions:
                tasks.start_soon(keep, question)
            await anyio.sleep(0.3)
            system.kill("worker-0")
            at = time.monotonic()
            system.processes["worker-0"].wait()
    first_s = max(answer.first_at for answer in answers) - at
    measured("3", f"the last first token {1e3 * first_s:.0f} ms later")
    assert [answer.text for answer in answers if answer.text != answer.question.expected] == []
    assert first_s < 2.1


async def test_everything_may_be_restarted_under_load(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system(workers=2, routers=1, frontends=2, settings={"worker.grace_s": 0.2})
    doomed = await make_questions(system.target("frontend-1"), 8)
    async with (
        under_load(system, streams=32, may_refuse=True) as load,
        running_load(system.target("frontend-1"), doomed, 8) as other,
    ):
        await anyio.sleep(1.0)
        at = time.monotonic()
        for name in ("worker-0", "worker-1", "router-0"):
            system.send(name, signal.SIGTERM)
            await anyio.to_thread.run_sync(system.processes[name].wait)
            before = len(system.events(name, f"{name.partition('-')[0]}.started"))
            system.start(name)
            await until(lambda: len(system.events(name, f"{name.partition('-')[0]}.started")) > before)  # noqa: B023
        system.send("frontend-1", signal.SIGTERM)
        other.stop()
        await anyio.to_thread.run_sync(system.processes["frontend-1"].wait)
        took_s = time.monotonic() - at
        await anyio.sleep(0.5)
    gap_s = max(a.longest_gap_s for a in load.answers if a.ended_at > at)
    bad = [a for a in other.answers if a.status == 200 and a.text != a.question.expected]
    measured("32", f"workers, router and a frontend in {took_s:.1f} s, gap {1e3 * gap_s:.0f} ms")
    assert bad == []
    assert all(process.returncode in (0, None) for process in system.processes.values())
    assert gap_s < 1.2
