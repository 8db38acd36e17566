"""In virtual time everything happens at its time and in order, and nothing waits."""

import asyncio
import time

import anyio
import pytest

from components.replay.clock import Stalled, run_virtual


def test_an_hour_takes_no_time_and_is_told_exactly() -> None:
    async def work() -> float:
        await anyio.sleep(3600)
        return anyio.current_time()

    started_at = time.perf_counter()
    assert run_virtual(work) == pytest.approx(3600, abs=1e-6)
    assert time.perf_counter() - started_at < 60


def test_timers_run_in_the_order_of_their_times_and_equal_ones_as_they_were_set() -> None:
    async def work() -> list[tuple[float, str]]:
        seen: list[tuple[float, str]] = []

        async def note(name: str, delay_s: float) -> None:
            await anyio.sleep(delay_s)
            seen.append((round(anyio.current_time(), 6), name))

        async with anyio.create_task_group() as tasks:
            for name, delay_s in (("c", 0.3), ("a", 0.1), ("b1", 0.2), ("b2", 0.2)):
                tasks.start_soon(note, name, delay_s)
        return seen

    assert run_virtual(work) == [(0.1, "a"), (0.2, "b1"), (0.2, "b2"), (0.3, "c")]


def test_computing_takes_no_virtual_time() -> None:
    async def work() -> float:
        sum(range(300_000))
        await asyncio.sleep(0)
        return anyio.current_time()

    assert run_virtual(work) == 0.0


def test_timeouts_expire_in_virtual_time() -> None:
    async def work() -> tuple[bool, float]:
        with anyio.move_on_after(5) as scope:
            await anyio.sleep(10)
        return scope.cancelled_caught, anyio.current_time()

    expired, now = run_virtual(work)
    assert expired
    assert now == pytest.approx(5)


def test_waiting_for_what_cannot_come_is_told_instead_of_hanging() -> None:
    async def work() -> None:
        await anyio.Event().wait()

    with pytest.raises(Stalled):
        run_virtual(work)


def test_what_the_work_raises_comes_out() -> None:
    async def work() -> None:
        await anyio.sleep(1)
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        run_virtual(work)
