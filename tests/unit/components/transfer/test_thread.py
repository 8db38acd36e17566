"""The thread for NIXL: jobs take turns, a cancel waits for its job, and what goes wrong reaches who waits."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from bus.errors import TransferFailed
from components.transfer.thread import Job, JobThread, Steps

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def _thread() -> AsyncIterator[JobThread]:
    thread = JobThread("test", lambda: 0.05)
    try:
        yield thread
    finally:
        with anyio.CancelScope(shield=True):
            await thread.close()


async def test_jobs_take_turns() -> None:
    seen: list[str] = []
    ready = threading.Event()

    def steps(name: str) -> Steps[str]:
        while not ready.is_set():
            yield False
        for _ in range(3):
            seen.append(name)
            yield True
        return name

    async with _thread() as thread, anyio.create_task_group() as tasks:
        tasks.start_soon(thread.run, lambda _: steps("a"))
        tasks.start_soon(thread.run, lambda _: steps("b"))
        await thread.run(lambda _: _once(len(seen)))
        ready.set()
    assert seen in (["a", "b"] * 3, ["b", "a"] * 3)


async def test_a_cancel_is_over_when_its_job_is() -> None:
    ended = threading.Event()
    started = anyio.Event()

    async with _thread() as thread:

        def steps(job: Job[None]) -> Steps[None]:
            thread.call_in_loop(started.set)
            while not job.is_stopped:
                yield False
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(thread.run, steps)
            await started.wait()
            tasks.cancel_scope.cancel()
        assert ended.is_set()


async def test_an_interrupt_ends_the_others_after_the_round() -> None:
    closed: list[str] = []

    async with _thread() as thread:

        def waits() -> Steps[None]:
            try:
                while True:
                    yield False
            finally:
                closed.append("waits")

        def interrupts(job: Job[list[str]]) -> Steps[list[str]]:
            yield False
            thread.interrupt(job, TransferFailed("made anew"))
            return list(closed)

        async def is_interrupted() -> None:
            with pytest.raises(TransferFailed, match="made anew"):
                await thread.run(lambda _: waits())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(is_interrupted)
            await anyio.lowlevel.checkpoint()
            assert await thread.run(interrupts) == ["waits"]


async def test_errors_reach_who_waits_and_nobody_else() -> None:
    async with _thread() as thread:

        def fails() -> Steps[None]:
            raise TransferFailed("gone")
            yield True

        thread.post(lambda _: fails())
        with pytest.raises(TransferFailed, match="gone"):
            await thread.run(lambda _: fails())
        assert await thread.run(lambda _: _once(7)) == 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_that_died_leaves_nobody_waiting() -> None:
    polls = 0

    def poll() -> float:
        nonlocal polls
        polls += 1
        if polls > 1:
            raise ValueError("a bug")
        return 0.001

    def waits() -> Steps[None]:
        while True:
            yield False

    thread = JobThread("test", poll)
    for _ in range(2):
        with pytest.raises(ValueError, match="a bug"):
            await thread.run(lambda _: waits())
    await thread.close()


def _once(value: int) -> Steps[int]:
    return value
    yield True
