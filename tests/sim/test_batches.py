"""Batches of which the broker loses something, or two frontends carry one, each as a scenario of its own."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio

from bus.protocol import Entry
from tests.history import Event, check_history
from tests.sim.batches import NUM_LINES, BatchClient
from tests.sim.scenario import Scripted, play
from tests.sim.stage import Process, Stage
from tests.sim.trace import Trace


def play_batch(disturb: Callable[[Stage], Awaitable[None]], *, num_frontends: int = 1) -> Trace:
    """Let a batch be disturbed once it is there: each of its lines must end once, with the oracle's text."""
    history: list[Event] = []

    async def script(stage: Stage, _: Scripted) -> None:
        client = BatchClient(stage, Random(4), "b", history)
        await client.begin(0)
        await disturb(stage)
        await client.end()
        assert stage.broker.buckets["RESULTS"].live == {}

    trace = play(script, num_frontends=num_frontends)
    assert check_history(history) == []
    return trace


async def at_status(stage: Stage, status: bytes, act: Callable[[str], None]) -> None:
    """Do something with the id of the batch in the moment in which it gets into a state; return after that."""
    store, is_done = stage.broker.buckets["BATCHES"], anyio.Event()
    write = store.write

    def write_and_act(key: str, value: bytes | None, ttl_s: int | None = None) -> int:
        revision = write(key, value, ttl_s)
        if status in (value or b"") and not is_done.is_set():
            is_done.set()
            act(key.rpartition(".")[2])
        return revision

    store.write = write_and_act  # type: ignore[method-assign]
    await is_done.wait()


def lose_jobs(stage: Stage) -> None:
    jobs = stage.broker.streams["JOBS"]
    for seq in list(jobs.messages):
        jobs.remove(seq)


def frontends(stage: Stage) -> list[Process]:
    return list(stage.of_kind("frontend"))


def test_a_batch_whose_job_is_lost_with_the_frontend_that_carried_it_goes_on() -> None:
    async def lose_both(stage: Stage) -> None:
        await at_status(stage, b"in_progress", lambda batch: lose_jobs(stage))
        stage.kill(*frontends(stage))

    assert play_batch(lose_both).counts["batch.job_lost"] == 1


def test_a_batch_whose_job_is_lost_is_not_carried_twice_by_one_frontend() -> None:
    async def lose_job(stage: Stage) -> None:
        await at_status(stage, b"in_progress", lambda batch: lose_jobs(stage))
        await stage.broker.restart()
        worker = next(stage.of_kind("worker")).name
        stage.loop.freeze(worker)
        await anyio.sleep(30)
        stage.loop.thaw(worker)

    trace = play_batch(lose_job)
    assert trace.counts["batch.job_lost"] == 1
    assert trace.counts["batch.ended"] == 1


def test_lines_whose_results_are_lost_are_run_again() -> None:
    async def lose_results(stage: Stage) -> None:
        results = stage.broker.buckets["RESULTS"].live

        def lose(batch: str) -> None:
            for number in (NUM_LINES - 1, NUM_LINES):
                del results[f"{batch}.{number}"]

        await at_status(stage, b"finalizing", lose)

    assert play_batch(lose_results).counts["batch.result_lost"] == 1


def test_a_frontend_that_stood_still_spoils_nothing_of_a_batch_that_another_one_ended() -> None:
    """It wrote the files anew, without the results that were gone by then."""

    async def freeze(stage: Stage) -> None:
        carrier, results = frontends(stage)[0], stage.broker.buckets["RESULTS"]

        class FreezesReader(dict[str, Entry]):
            def get(self, key: str, default: Any = None) -> Any:
                if key.endswith(".3"):
                    results.live = dict(self)
                    stage.loop.freeze(carrier.name)
                return super().get(key, default)

        def freeze_soon(_batch: str) -> None:
            results.live = FreezesReader(results.live)

        await at_status(stage, b"finalizing", freeze_soon)
        await at_status(stage, b"completed", lambda batch: None)
        await anyio.sleep(1)
        stage.loop.thaw(carrier.name)
        await anyio.sleep(5)

    assert play_batch(freeze, num_frontends=2).counts["batch.ended"] == 2
