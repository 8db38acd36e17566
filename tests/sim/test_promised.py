"""What must come right within a given time, on whole deployments in virtual time."""

import asyncio
from functools import partial
from random import Random

import anyio
import pytest

from bus.codec import codec
from bus.config import OffloadConfig, RouterConfig
from bus.messages.inference import UsageBatch
from bus.testing.faults import Fate
from components.router.service import Router
from tests.history import Event, check_history
from tests.sim.clients import ask, draw_question
from tests.sim.layout import HOST_BYTES, Layout
from tests.sim.memory import find_remembered
from tests.sim.scenario import Scripted, play
from tests.sim.stage import Stage

FLEET = Layout((("both",),) * 4, OffloadConfig(host_bytes=HOST_BYTES // 4))


async def put_load(stage: Stage, history: list[Event], *, num_requests: int) -> None:
    """Ask for a while, with prompts that push each other out of all memories, until everything is answered."""
    rng = Random(1)
    async with anyio.create_task_group() as tasks:
        for number in range(num_requests):
            tasks.start_soon(ask, stage, rng, draw_question(rng, f"q{number}", may_leave=False), history)
            await anyio.sleep(0.05)


def test_routers_know_what_workers_hold_two_seconds_after_every_twentieth_message_of_it_was_lost() -> None:
    history: list[Event] = []
    num_lost = 0

    async def script(stage: Stage, weather: Scripted) -> None:
        rng = Random(2)

        def loses(_: str, subject: str) -> bool:
            nonlocal num_lost
            is_lost = ".kv.v1." in subject and rng.random() < 0.05
            num_lost += is_lost
            return is_lost

        weather.loses = loses
        await put_load(stage, history, num_requests=160)
        await anyio.sleep(2)
        assert stage.find_leftovers() == []

    play(script, num_routers=2, layout=FLEET)
    assert num_lost > 50
    assert check_history(history, may_fail=["deadline_passed", "overloaded"]) == []


def test_what_routers_do_not_know_is_told() -> None:
    async def script(stage: Stage, _: Scripted) -> None:
        await put_load(stage, [], num_requests=10)
        await anyio.sleep(2)
        router = next(stage.of_kind("router")).component
        assert isinstance(router, Router)
        desk = router.find("sim")
        assert desk is not None
        worker = desk.pool.fleet.state(0).name
        assert desk.pool._scorer._index.num_blocks(worker) > 0
        desk.pool._scorer._index.remove_worker(worker)
        assert any(worker in line for line in stage.find_leftovers())

    play(script, num_routers=1, layout=FLEET)


def test_nobody_remembers_processes_that_are_gone() -> None:
    offload = OffloadConfig(host_bytes=HOST_BYTES // 4, peers=True)
    layout = Layout((("both",), ("prefill",), ("decode",)), offload, RouterConfig(disaggregate="always"))
    gone: list[str] = []

    def look(stage: Stage) -> list[str]:
        return find_remembered([*asyncio.all_tasks(), *(process.component for process in stage.processes)], gone)

    def end(stage: Stage, number: int) -> None:
        process = stage.processes[number]
        if process.component is not None:
            gone.append(process.name)
            (stage.stop if len(gone) % 3 == 0 else stage.kill)(process)

    async def script(stage: Stage, _: Scripted) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(put_load, stage, [], num_requests=160))
            for _round in range(5):
                for number in range(len(stage.processes)):
                    await anyio.sleep(0.3)
                    end(stage, number)
            await anyio.sleep(3)
            end(stage, 0)  # a worker and a router, while the others and the last frontend live on
            end(stage, 3)
        await anyio.sleep(10)
        assert not {process.name for process in stage.processes} & set(gone)
        assert any("f-0-" in line for line in look(stage))
        await anyio.sleep(40)
        await put_load(stage, [], num_requests=20)
        assert look(stage) == []

    play(script, num_routers=2, layout=layout)
    assert len(gone) >= 15


@pytest.mark.parametrize("fate", ["lost", "unanswered"])
def test_what_a_request_used_is_stored_once_by_a_broker_that_could_not_for_a_minute(fate: Fate) -> None:
    async def script(stage: Stage, weather: Scripted) -> None:
        back_at = stage.loop.time() + 60
        weather.fate = lambda subject: fate if ".usage.v1." in subject and stage.loop.time() < back_at else "kept"
        await put_load(stage, [], num_requests=3)
        await anyio.sleep(70)
        records = [codec(UsageBatch).decode(each.payload) for each in stage.broker.streams["USAGE"].messages.values()]
        assert sum(len(each.requests) for each in records) >= 3
        ids = [each.request_id for record in records for each in record.requests]
        assert len(ids) == len(set(ids))

    trace = play(script)
    assert "usage.lost" not in trace.counts
