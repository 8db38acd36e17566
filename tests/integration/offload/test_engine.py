"""Engines with tiers say what an engine without says, whatever was evicted, reloaded, restarted or aborted."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest
import torch

from bus.config import MockConfig, OffloadConfig, WorkerConfig
from bus.errors import BadConfig, EngineDied
from bus.messages.inference import Hints, Sampling, Stopping
from bus.testing import MemoryBroker
from components.builtin import MODEL_DIR
from components.engines import Ended, Engine, EngineRequest, Step
from components.engines.mock.engine import MockEngine
from components.engines.torch.copier import DeviceCopier, Lane
from components.engines.torch.driver import TorchDriver
from components.engines.torch.engine import TorchEngine
from components.engines.torch.load import load_core
from components.transfer import open_transfer
from components.worker.offload import TieredEngine
from components.worker.tiers import open_host, open_tiers
from offload.copier import Payloads
from offload.disk import open_disk
from offload.gate import Gate
from offload.host import stride_bytes
from offload.mover import open_mover
from offload.store import Store
from offload.tier import Tier

pytestmark = pytest.mark.anyio

NUM_BLOCKS = 32
"""Of the device: three prompts."""
PROMPT_TOKENS = 150
MODEL = "busway-tiny"
NO_HINTS = Hints()


def torch_core(num_blocks: int, device: str = "cpu") -> TorchEngine:
    config = WorkerConfig(device=device, dtype="float32", block_size=16, kv_cache_bytes=2**22, max_batch_tokens=128)
    memory = load_core(config, MODEL_DIR, model=MODEL).memory
    config = msgspec.structs.replace(config, kv_cache_bytes=num_blocks * memory.block_bytes)
    return load_core(config, MODEL_DIR, model=MODEL)


def torch_engine(num_blocks: int) -> Engine:
    return TorchDriver(torch_core(num_blocks))


class LostEvent(torch.cpu.Event):
    """An event of a device that broke."""

    def synchronize(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def tensors_engine(
    num_blocks: int,
    *,
    inward: type[torch.cpu.Event] = torch.cpu.Event,
    outward: type[torch.cpu.Event] = torch.cpu.Event,
) -> Engine:
    """Return an engine whose blocks are copied as a GPU's are, and no GPU."""
    core = torch_core(num_blocks)

    @asynccontextmanager
    async def open_copier(payloads: Payloads) -> AsyncIterator[DeviceCopier]:
        lanes = {
            title: Lane(torch.cpu.Stream(), torch.cpu.stream, make_event)
            for title, make_event in (("inward", inward), ("outward", outward))
        }
        yield DeviceCopier(core._cache.blocks, payloads, **lanes)

    core.memory = msgspec.structs.replace(core.memory, buffer=None, open_copier=open_copier)
    return TorchDriver(core)


def gpu_engine(num_blocks: int) -> Engine:
    return TorchDriver(torch_core(num_blocks, "cuda"))


def mock_engine(num_blocks: int) -> Engine:
    config = MockConfig(num_blocks=num_blocks, block_size=16, max_model_len=512, step_base_s=0.001)
    return MockEngine(config, model=MODEL, vocab_size=1000)


ENGINES: dict[str, Callable[[int], Engine]] = {
    "torch": torch_engine,
    "torch by tensors": tensors_engine,
    "torch on a GPU": gpu_engine,
    "mock": mock_engine,
}


class Eager(Gate):
    """Believes that computing is slow: whatever a tier has is loaded, as soon as the tier has proved itself."""

    @property
    def prefill_s(self) -> tuple[float, float]:
        return 1.0, 0.0


class Driven:
    """Runs requests on an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._next_key = 0
        self._tokens: dict[int, list[int]] = {}
        self._ended: dict[int, Ended] = {}
        self._over: dict[int, anyio.Event] = {}

    def on_step(self, step: Step) -> None:
        self.engine.take_events()
        for key, token in zip(step.keys, step.tokens, strict=True):
            self._tokens[key].append(token)
        for ended in step.ended:
            self._ended[ended.key] = ended
            self._over[ended.key].set()

    def submit(self, prompt: list[int], sampling: Sampling, salt: str = "", hints: Hints = NO_HINTS) -> int:
        self._next_key += 1
        key = self._next_key
        self._tokens[key], self._over[key] = [], anyio.Event()
        stopping = Stopping(max_tokens=20, ignore_eos=True)
        self.engine.submit(
            EngineRequest(key, prompt, [], sampling, stopping, frozenset(), cache_salt=salt, hints=hints)
        )
        return key

    async def result(self, key: int) -> tuple[list[int], int]:
        """Return tokens, and how many of the prompt's were found in some cache."""
        with anyio.fail_after(30):
            await self._over[key].wait()
        return self._tokens[key], self._ended[key].cached_tokens

    async def run(self, prompt: list[int], sampling: Sampling, salt: str = "") -> tuple[list[int], int]:
        return await self.result(self.submit(prompt, sampling, salt))


@asynccontextmanager
async def driven(engine: Engine) -> AsyncIterator[Driven]:
    async with anyio.create_task_group() as tasks:
        one = Driven(engine)
        tasks.start_soon(engine.run, one.on_step)
        yield one
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def tiered(engine: Engine, *, host_blocks: int, disk: Path | None = None) -> AsyncIterator[Driven]:
    """Drive an engine with host memory, and a disk that has room for everything."""
    memory = engine.memory
    assert memory is not None
    stride = stride_bytes(memory.block_bytes)

    @asynccontextmanager
    async def run(*tiers: Tier) -> AsyncIterator[Driven]:
        gate = Eager([tier.name for tier in tiers], block_size=16)
        async with (
            open_host(memory, host_blocks * stride) as host,
            open_mover(host, tiers, gate, block_size=16) as mover,
            anyio.create_task_group() as tasks,
        ):
            async with driven(TieredEngine(engine, memory, mover, gate, tasks, model=MODEL)) as one:
                yield one
            tasks.cancel_scope.cancel()

    if disk is None:
        async with run() as one:
            yield one
    else:
        async with open_disk(disk, 1000 * stride, memory.block_bytes, memory.fingerprint) as tier, run(tier) as one:
            yield one


Asked = list[tuple[list[int], Sampling, str]]


@pytest.fixture(params=ENGINES)
def make_engine(request: pytest.FixtureRequest) -> Callable[[int], Engine]:
    if request.param == "torch on a GPU" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return ENGINES[request.param]


@pytest.fixture
def asked() -> Asked:
    """More prompts than the device has room for, greedy and seeded; two of one text and two tenants."""
    rng = Random(5)
    prompts = [[rng.randrange(2, 500) for _ in range(PROMPT_TOKENS + index)] for index in range(7)]
    samplings = [Sampling(temperature=0.0) if index % 2 else Sampling(seed=index) for index in range(7)]
    asked = [(prompt, sampling, "") for prompt, sampling in zip(prompts, samplings, strict=True)]
    return [*asked, (prompts[0], samplings[0], "tenant")]


@pytest.fixture
async def expected(make_engine: Callable[[int], Engine], asked: Asked) -> list[list[int]]:
    """What an engine without tiers says."""
    async with driven(make_engine(256)) as plain:
        return [(await plain.run(*each))[0] for each in asked]


async def test_evicted_and_reloaded_the_tokens_are_the_same(
    make_engine: Callable[[int], Engine], asked: Asked, expected: list[list[int]]
) -> None:
    async with tiered(make_engine(NUM_BLOCKS), host_blocks=400) as one:
        cached = 0
        for turn in range(4):
            for each, tokens in zip(asked, expected, strict=True):
                got, num_cached = await one.run(*each)
                assert got == tokens
                cached += num_cached if turn else 0
        assert cached >= 2.5 * len(asked) * (PROMPT_TOKENS // 16) * 16, "most of it was reloaded"


async def test_side_by_side_with_aborts_the_tokens_are_the_same(
    make_engine: Callable[[int], Engine], asked: Asked, expected: list[list[int]]
) -> None:
    rng = Random(3)
    async with tiered(make_engine(NUM_BLOCKS), host_blocks=40) as one:
        for _ in range(4):
            doomed = [one.submit(*rng.choice(asked)) for _ in range(2)]
            keys = [one.submit(*each) for each in asked]
            for key in doomed:
                one.engine.abort(key)
            for key, tokens in zip(keys, expected, strict=True):
                assert (await one.result(key))[0] == tokens


@pytest.mark.parametrize("make_engine", ["torch", "mock"], indirect=True)
async def test_a_restarted_worker_goes_on_with_what_is_on_its_disk(
    make_engine: Callable[[int], Engine],
    asked: Asked,
    expected: list[list[int]],
    tmp_path: Path,
) -> None:
    async with tiered(make_engine(NUM_BLOCKS), host_blocks=400, disk=tmp_path) as one:
        for each, tokens in zip(asked, expected, strict=True):
            assert (await one.run(*each))[0] == tokens
    async with tiered(make_engine(NUM_BLOCKS), host_blocks=400, disk=tmp_path) as one:
        cached = 0
        for _ in range(3):  # the first ones measure the disk
            for each, tokens in zip(asked, expected, strict=True):
                got, num_cached = await one.run(*each)
                assert got == tokens
                cached += num_cached
        assert cached > 2 * PROMPT_TOKENS


async def test_a_restarted_worker_knows_what_its_disk_takes_before_anybody_asks(
    asked: Asked, tmp_path: Path, eventually: Any
) -> None:
    config = OffloadConfig(host_bytes=2**24, disk_bytes=2**24, disk_path=str(tmp_path))

    @asynccontextmanager
    async def worker() -> AsyncIterator[Driven]:
        no_stores: list[Store] = []
        async with (
            MemoryBroker().connect("w-1") as bus,
            open_tiers(
                config,
                mock_engine(NUM_BLOCKS),
                bus,
                model=MODEL,
                worker="w-1",
                open_transfer=open_transfer,
                find_stores=lambda _: no_stores,
            ) as engine,
            driven(engine) as one,
        ):
            yield one

    def media(one: Driven) -> list[str]:
        return [rate.tier for rate in one.engine.load().tiers]

    async with worker() as one:
        for each in asked:
            await one.run(*each)
        assert media(one) == ["host"]
    async with worker() as one:
        await eventually(lambda: media(one) == ["host", "disk"])


async def test_a_pinned_prompt_outlives_others_in_host_memory(asked: Asked) -> None:
    async with tiered(mock_engine(NUM_BLOCKS), host_blocks=40) as one:
        prompt, sampling, _ = asked[0]
        await one.result(one.submit(prompt, sampling, hints=Hints(pin_ttl_s=600.0)))
        for _ in range(2):
            for each in asked[1:7]:
                await one.run(*each)
        assert (await one.run(prompt, sampling))[1] == PROMPT_TOKENS // 16 * 16


async def test_what_has_priority_stays_longer(asked: Asked) -> None:
    async with tiered(mock_engine(NUM_BLOCKS), host_blocks=40) as one:
        (low, sampling, _), (high, _, _) = asked[0], asked[1]
        await one.result(one.submit(low, sampling, hints=Hints(priority=-1)))
        await one.result(one.submit(high, sampling, hints=Hints(priority=1)))
        for each in asked[2:6]:
            await one.run(*each)
        assert (await one.run(high, sampling))[1] == PROMPT_TOKENS // 16 * 16
        assert (await one.run(low, sampling))[1] == 0


async def test_a_session_that_is_pinned_for_hours_is_found_after_them_and_not_kept_forever(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    rng, hours = Random(9), 0

    async def pass_hour(one: Driven) -> None:
        nonlocal now, hours
        hours += 1
        now = 1e9 + 3600 * hours
        for _ in range(8):  # twice of what there is room for
            await one.run([rng.randrange(2, 500) for _ in range(PROMPT_TOKENS)], Sampling(temperature=0.0))

    async with tiered(mock_engine(NUM_BLOCKS), host_blocks=40) as one:
        prompt, sampling, _ = asked[0]
        await one.result(one.submit(prompt, sampling, hints=Hints(pin_ttl_s=4 * 3600.0)))
        for _ in range(3):
            await pass_hour(one)
        turn = one.submit(prompt, sampling, hints=Hints(pin_ttl_s=4 * 3600.0))
        assert (await one.result(turn))[1] == PROMPT_TOKENS // 16 * 16
        for _ in range(3):
            await pass_hour(one)
        assert (await one.run(prompt, sampling))[1] == PROMPT_TOKENS // 16 * 16, "the second turn pinned it again"
        for _ in range(2):
            await pass_hour(one)
        assert (await one.run(prompt, sampling))[1] == 0


@pytest.mark.parametrize("lane", ["inward", "outward"])
async def test_an_engine_whose_blocks_cannot_be_copied_any_more_has_died(asked: Asked, lane: str) -> None:
    engine = tensors_engine(NUM_BLOCKS, **{lane: LostEvent})
    memory = engine.memory
    assert memory is not None
    async with (
        open_host(memory, 400 * stride_bytes(memory.block_bytes)) as host,
        open_mover(host, [], Eager([], block_size=16), block_size=16) as mover,
        anyio.create_task_group() as tasks,
    ):
        one = Driven(TieredEngine(engine, memory, mover, Eager([], block_size=16), tasks, model=MODEL))
        died = anyio.Event()

        async def run() -> None:
            with pytest.raises(EngineDied, match="illegal memory access"):
                await one.engine.run(one.on_step)
            died.set()

        async def ask() -> None:
            while True:
                for each in asked:
                    await one.run(*each)

        with anyio.fail_after(60):
            tasks.start_soon(run)
            tasks.start_soon(ask)
            await died.wait()
        assert not any(host.slots._pins)
        tasks.cancel_scope.cancel()


async def test_an_engine_whose_blocks_nobody_can_reach_has_no_tiers() -> None:
    core = torch_core(NUM_BLOCKS)
    core.memory = msgspec.structs.replace(core.memory, device="npu:0", buffer=None)
    no_stores: list[Store] = []
    with pytest.raises(BadConfig, match="on npu:0, out of reach: set offload"):
        async with (
            MemoryBroker().connect("w-1") as bus,
            open_tiers(
                OffloadConfig(host_bytes=2**24),
                TorchDriver(core),
                bus,
                model=MODEL,
                worker="w-1",
                open_transfer=open_transfer,
                find_stores=lambda _: no_stores,
            ),
        ):
            pass
