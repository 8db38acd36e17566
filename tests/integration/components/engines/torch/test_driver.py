"""The engine in its thread, as a worker uses it."""

import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from bus.errors import EngineDied, PromptTooLong
from bus.messages.base import unpack_u64
from bus.messages.inference import Sampling, Stopping
from bus.messages.kv import BlocksStored
from components.engines import EngineRequest, Step
from components.engines.torch.driver import TorchDriver

pytestmark = pytest.mark.anyio
GREEDY = Sampling(temperature=0.0)


def request(key: int, prompt: list[int], count: int = 12) -> EngineRequest:
    return EngineRequest(key, prompt, [], GREEDY, Stopping(max_tokens=count, ignore_eos=True), frozenset())


class Worker:
    """Keeps what the driver delivers, and lets a test wait for it."""

    def __init__(self, driver: TorchDriver) -> None:
        self.driver = driver
        self.tokens: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.hashes: set[int] = set()
        self._changed = anyio.Event()

    def on_step(self, step: Step) -> None:
        for key, token in zip(step.keys, step.tokens, strict=True):
            self.tokens.setdefault(key, []).append(token)
        self.ended |= {ended.key for ended in step.ended}
        for event in self.driver.take_events():
            assert isinstance(event, BlocksStored)
            self.hashes |= set(unpack_u64(event.block_hashes))
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, is_met: Callable[[], bool]) -> None:
        with anyio.fail_after(30):
            while not is_met():
                await self._changed.wait()


@asynccontextmanager
async def running(driver: TorchDriver) -> Any:
    worker = Worker(driver)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.run, worker.on_step)
        yield worker
        tasks.cancel_scope.cancel()


async def test_sequences_come_back_with_events_and_load(model: Any, load: Any, prompts: Any) -> None:
    driver = TorchDriver(load())
    driver.submit(request(0, prompts[8]))
    assert (driver.load().waiting, driver.load().prefill_tokens) == (1, 100)
    async with running(driver) as worker:
        await worker.until(lambda: 0 in worker.ended)
        driver.submit(request(1, prompts[5]))
        await worker.until(lambda: 1 in worker.ended)
    assert worker.tokens == {key: model.generate(prompts[number], 12) for key, number in ((0, 8), (1, 5))}
    assert worker.hashes == driver._engine.pool.known_hashes() != set()
    load_after = driver.load()
    assert (load_after.running, load_after.waiting, load_after.prefill_tokens) == (0, 0, 0)
    assert load_after.free_blocks == driver.spec.num_blocks


async def test_nothing_is_told_of_a_sequence_after_its_abort(load: Any, prompts: Any) -> None:
    driver = TorchDriver(load())
    async with running(driver) as worker:
        for key in range(6):
            driver.submit(request(key, prompts[key], 150))
        await worker.until(lambda: len(worker.tokens) == 6)
        for key in range(0, 6, 2):
            driver.abort(key)
        seen = {key: len(worker.tokens[key]) for key in range(0, 6, 2)}
        await worker.until(lambda: len(worker.tokens[1]) > 100)
        assert {key: len(worker.tokens[key]) for key in range(0, 6, 2)} == seen
        await worker.until(lambda: {1, 3, 5} <= worker.ended)
    assert worker.ended == {1, 3, 5}
    assert not driver._aborted


async def test_an_abort_before_the_first_step_and_of_unknown_keys_leaves_nothing(
    load: Any, prompts: Any, eventually: Any
) -> None:
    driver = TorchDriver(load())
    driver.submit(request(0, prompts[8]))
    driver.abort(0)
    driver.abort(77)
    assert driver.load().waiting == 0
    async with running(driver) as worker:
        await eventually(lambda: not driver._aborted)
    assert not worker.tokens
    assert driver.load().free_blocks == driver.spec.num_blocks


async def test_an_idle_engine_sleeps(load: Any, prompts: Any) -> None:
    driver = TorchDriver(load())
    turns = 0
    take_inbox = driver._take_inbox

    def count() -> Any:
        nonlocal turns
        turns += 1
        return take_inbox()

    driver._take_inbox = count  # type: ignore[method-assign]
    async with running(driver) as worker:
        driver.submit(request(0, prompts[0], 2))
        await worker.until(lambda: 0 in worker.ended)
        before = turns
        await anyio.wait_all_tasks_blocked()
        assert turns - before <= 2


async def test_a_request_that_cannot_fit_is_refused_at_once(load: Any) -> None:
    with pytest.raises(PromptTooLong):
        TorchDriver(load()).submit(request(0, [5] * 256))


async def test_a_step_that_fails_ends_run_with_the_reason(load: Any, prompts: Any) -> None:
    engine = load()
    driver = TorchDriver(engine)
    del engine._network._attention
    driver.submit(request(0, prompts[0]))
    with pytest.raises(EngineDied, match="AttributeError"), anyio.fail_after(30):
        await driver.run(lambda step: None)
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]


async def test_an_error_of_the_receiver_is_raised_by_run(load: Any, prompts: Any) -> None:
    driver = TorchDriver(load())
    driver.submit(request(0, prompts[0]))

    def fail(step: Step) -> None:
        raise RuntimeError("receiver")

    with pytest.raises(RuntimeError, match="receiver"), anyio.fail_after(30):
        await driver.run(fail)


async def test_a_cancel_ends_the_thread_in_the_middle_of_work(load: Any, prompts: Any) -> None:
    driver = TorchDriver(load())
    async with running(driver) as worker:
        driver.submit(request(0, prompts[0], 200))
        await worker.until(lambda: 0 in worker.tokens)
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]


async def test_a_loop_that_lags_stops_the_thread_not_the_memory(load: Any, prompts: Any) -> None:
    driver = TorchDriver(load())
    driver.submit(request(0, prompts[0], 200))
    async with running(driver) as worker:
        await worker.until(lambda: 0 in worker.tokens)
        engine = driver._engine
        deadline = threading.Event()
        deadline.wait(0.2)  # the loop is blocked on purpose: the thread must come to rest
        length = len(engine.scheduler.running[0].tokens)
        deadline.wait(0.1)
        assert len(engine.scheduler.running[0].tokens) == length
        await worker.until(lambda: 0 in worker.ended)
    assert len(worker.tokens[0]) == 200
