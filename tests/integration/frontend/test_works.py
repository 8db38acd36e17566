"""What frontends tell each other about responses in the making: waits for what is stored, stops what is cancelled."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from bus.protocol import Bus
from bus.testing import MemoryBroker
from frontend.errors import ShuttingDown, TooManyRequests
from frontend.responses.answers import response_id
from frontend.responses.tape import Tape
from frontend.responses.works import MAX_DETACHED, MAX_ENDED_BYTES, Works

pytestmark = pytest.mark.anyio

MINE = response_id("1" * 32, "f-1")


@asynccontextmanager
async def two_frontends() -> AsyncIterator[tuple[Bus, Works, Works]]:
    """Run two frontends' works; the first one's bus comes with them."""
    broker = MemoryBroker()
    async with broker.connect("one") as one, broker.connect("two") as two, anyio.create_task_group() as tasks:
        works, others = Works(one, "f-1"), Works(two, "f-2")
        stopping = anyio.Event()
        tasks.start_soon(works.run, stopping)
        tasks.start_soon(others.run, stopping)
        await anyio.wait_all_tasks_blocked()
        yield one, works, others
        stopping.set()


async def test_what_is_running_is_told_apart_from_what_is_not() -> None:
    async with two_frontends() as (_, works, others):
        assert await others.ask(MINE) is False
        work = works.begin(MINE)
        assert (await others.ask(MINE), await works.ask(MINE)) == (True, True)
        works.end(work)
        assert await others.ask(MINE) is False
        assert await others.ask(response_id("1" * 32, "f-gone")) is False
        assert await others.ask("resp_of_nobody") is False


async def test_what_is_about_to_be_stored_is_waited_for() -> None:
    async with two_frontends() as (_, works, others), anyio.create_task_group() as tasks:
        work = works.begin(MINE)
        work.is_saving = True
        answers = []

        async def ask() -> None:
            answers.append(await others.ask(MINE))

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert answers == []
        works.end(work)
        with anyio.fail_after(30):
            while not answers:
                await anyio.wait_all_tasks_blocked()
        assert answers == [False]


async def test_a_cancel_from_another_frontend_ends_the_work_first() -> None:
    async with two_frontends() as (_, works, others):
        work = works.begin(MINE, is_detached=True)

        async def make() -> None:
            with work.scope:
                await anyio.sleep_forever()

        works.detach(work, make)
        assert await others.ask(MINE) is True
        assert await others.ask(MINE, cancel=True) is False
        assert work.scope.cancelled_caught


async def test_noise_on_the_subject_is_no_harm() -> None:
    async with two_frontends() as (bus, works, others):
        for noise in (b"", b"\xff" * 100, b"\x81\xa8response\xc0"):
            bus.publish(bus.subjects.response("f-1"), noise, reply="nobody")
        work = works.begin(MINE)
        assert await others.ask(MINE) is True
        works.end(work)


async def test_work_in_the_background_is_bounded() -> None:
    async with MemoryBroker().connect("one") as bus:
        works = Works(bus, "f-1")
        begun = [works.begin(f"r{number}", is_detached=True) for number in range(MAX_DETACHED)]
        with pytest.raises(TooManyRequests):
            works.begin("one-too-many", is_detached=True)
        works.end(begun.pop())
        begun.append(works.begin("again", is_detached=True))
        with pytest.raises(ShuttingDown):
            works.detach(begun[0], anyio.sleep_forever)


async def test_what_was_told_of_a_response_is_kept_for_a_while_after_its_end() -> None:
    async with two_frontends() as (_, works, others):
        text = b"event: x\ndata: " + b"x" * 2**20 + b"\n\n"
        made = [response_id(f"{number:032x}", "f-1") for number in range(MAX_ENDED_BYTES // 2**20 + 4)]
        for response in made:
            tape = Tape()
            work = works.begin(response, is_detached=True, tape=tape)
            tape.send(text, b"", b"")
            tape.close(b"", b"event: response.completed\ndata: x\n\n")
            works.end(work)
        told: dict[str, list[bytes]] = {}
        for response in (made[0], made[-1]):
            heard = told.setdefault(response, [])
            others.listen(response, 0, heard.append)
            with anyio.fail_after(30):
                while b"" not in heard:
                    await anyio.wait_all_tasks_blocked()
    assert told == {made[0]: [b""], made[-1]: [b"event: response.completed\ndata: x\n\n", b""]}
