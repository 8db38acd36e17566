"""What measurements of tiers share: a PyTorch engine in its thread, with or without tiers; times of first tokens."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from bus.config import WorkerConfig
from bus.messages.inference import Sampling, Stopping
from components.engines import Engine, EngineRequest, Step
from components.engines.mock.engine import MockEngine
from components.engines.torch.driver import TorchDriver
from components.engines.torch.load import load_core
from components.replay.world import DYNAMO_MOCKER
from components.worker.offload import TieredEngine
from offload.gate import Gate
from offload.host import HostArena, stride_bytes
from offload.mover import Mover, open_mover
from offload.tier import Tier
from tests.bench.engine_torch import VOCAB

BLOCK_SIZE = 16
MODEL = "bench"
GREEDY = Sampling(temperature=0.0)


class Answer(NamedTuple):
    ttft_s: float
    loop_s: float
    """CPU time of the event loop's thread until the first token."""
    cpu_s: float
    """CPU time of all threads until then."""
    cached_tokens: int
    tokens: list[int]


class Driven:
    """Runs requests one after the other on an engine that runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._key = 0
        self._first_at = self._first_loop = self._first_cpu = 0.0
        self._tokens: list[int] = []
        self._cached = 0
        self._over = anyio.Event()

    def on_step(self, step: Step) -> None:
        self.engine.take_events()
        if step.tokens and not self._tokens:
            self._first_at, self._first_loop = time.perf_counter(), time.thread_time()
            self._first_cpu = time.process_time()
        self._tokens += step.tokens
        for ended in step.ended:
            self._cached = ended.cached_tokens
            self._over.set()

    async def ask(self, prompt: Sequence[int], count: int = 2) -> Answer:
        """Run a greedy request to its end."""
        self._key += 1
        self._tokens, self._over = [], anyio.Event()
        stopping = Stopping(max_tokens=count, ignore_eos=True)
        request = EngineRequest(self._key, list(prompt), [], GREEDY, stopping, frozenset())
        started_at, started_loop, started_cpu = time.perf_counter(), time.thread_time(), time.process_time()
        self.engine.submit(request)
        await self._over.wait()
        return Answer(
            self._first_at - started_at,
            self._first_loop - started_loop,
            self._first_cpu - started_cpu,
            self._cached,
            self._tokens,
        )


def make_engine(directory: Path, num_blocks: int, *, max_batch_tokens: int = 512) -> TorchDriver:
    """Load the model in `directory` with so many KV blocks.

    In float32: what bfloat16 rounds off depends on how a prompt is cut into steps, and decides between the tokens of a
    random model, so that those with tiers and without could not be compared.
    """
    config = WorkerConfig(
        device="cpu",
        dtype="float32",
        block_size=BLOCK_SIZE,
        kv_cache_bytes=2**22,
        max_batch_tokens=max_batch_tokens,
        max_running=4,
    )
    block_bytes = load_core(config, directory, model=MODEL).memory.block_bytes
    config = msgspec.structs.replace(config, kv_cache_bytes=num_blocks * block_bytes)
    return TorchDriver(load_core(config, directory, model=MODEL))


def make_mock(num_blocks: int) -> MockEngine:
    """Return an engine that takes the time of an H100, as NVIDIA Dynamo's mocker has it, and nothing of this CPU's."""
    config = msgspec.structs.replace(DYNAMO_MOCKER, num_blocks=num_blocks, block_size=BLOCK_SIZE, max_running=4)
    return MockEngine(config, model=MODEL, vocab_size=VOCAB)


@asynccontextmanager
async def drive(engine: Engine) -> AsyncIterator[Driven]:
    """Run an engine."""
    driven = Driven(engine)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run, driven.on_step)
        yield driven
        tasks.cancel_scope.cancel()


def make_host(engine: TorchDriver | MockEngine, num_blocks: int) -> HostArena:
    """Return host memory for so many blocks of an engine."""
    block_bytes = engine.memory.block_bytes
    return HostArena(num_blocks * stride_bytes(block_bytes), block_bytes)


@asynccontextmanager
async def drive_tiered(
    engine: TorchDriver | MockEngine, host: HostArena, *tiers: Tier
) -> AsyncIterator[tuple[Driven, Mover, Gate]]:
    """Run an engine with this host memory, over these tiers."""
    gate = Gate([tier.name for tier in tiers], block_size=BLOCK_SIZE)
    async with open_mover(host, tiers, gate, block_size=BLOCK_SIZE) as mover, anyio.create_task_group() as tasks:
        async with drive(TieredEngine(engine, engine.memory, mover, gate, tasks, model=MODEL)) as driven:
            yield driven, mover, gate
        tasks.cancel_scope.cancel()


async def settle(engine: TieredEngine, mover: Mover) -> None:
    """Wait until all that was computed is copied out and written on."""
    while engine._stored or engine._pins:  # noqa: ASYNC110 - the engine tells nobody
        await anyio.sleep(0.002)
    await mover.flush()


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
