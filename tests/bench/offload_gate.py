"""Time to the first token with a tier, over that without, for prompts of all lengths: never slower than off.

Each prompt was computed before and has left the device; the engine with tiers has it in one of them. Tiers are host
memory, the disk, Redis, the S3 stub, and one that was made to take 0.1 s, 1 s, or for ever. The two are asked in turn;
prints both medians, the median ratio of what was asked together, the ratio of the quickest of each (which a busy
machine leaves alone), CPU milliseconds of the event loop therein, and what a request pays on a tier that dies then.
`python -m tests.bench.offload_gate`, with OMP_NUM_THREADS=1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import anyio

from bus.config import OffloadConfig, RedisTierConfig, S3TierConfig
from bus.messages.kv import KvEvent
from bus.testing import MemoryBroker
from components.engines.exchange import BlockMemory
from components.engines.mock.engine import MockEngine
from components.engines.torch.driver import TorchDriver
from offload.disk import open_disk
from offload.host import HostArena, stride_bytes
from offload.key import BlockKey, frame_bytes
from offload.quota import Quota
from offload.remote import RemoteTier
from offload.stores import make_stores
from offload.tier import Frame, Medium, Presence, Retention, Tier
from tests.bench.engine_torch import VOCAB, write_model
from tests.bench.offload_remote import STUB, free_port
from tests.bench.offload_stage import (
    BLOCK_SIZE,
    Answer,
    Driven,
    drive,
    drive_tiered,
    make_engine,
    make_mock,
    percentile,
)

DEAD_S = 5.0
"""After which a tier that is dead says so."""


class SlowTier:
    """A tier in memory that takes its time."""

    name = "s3"
    medium: Medium = "remote"
    owner = ""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self._frames: dict[BlockKey, bytes] = {}

    def lookup(self, keys: Sequence[BlockKey]) -> list[Presence]:
        return [Presence.HIT if key in self._frames else Presence.MISS for key in keys]

    def touch(self, keys: Sequence[BlockKey]) -> None:
        pass

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        self._frames |= {frame.key: bytes(frame.view) for frame in frames}
        return [True] * len(frames)

    async def retain(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        pass

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        await anyio.sleep(min(self.delay_s, DEAD_S))
        if self.delay_s > DEAD_S:
            return [False] * len(frames)
        for frame in frames:
            frame.view[:] = self._frames[frame.key]
        return [True] * len(frames)

    async def remove(self, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            self._frames.pop(key, None)

    def take_events(self) -> list[KvEvent]:
        return []


TIERS = {"host": 0.0, "disk": 0.0, "redis": 0.0, "s3": 0.0, "fast": 0.0, "0.1 s": 0.1, "1 s": 1.0, "dead": float("inf")}


@asynccontextmanager
async def open_tier(name: str, directory: Path, memory: BlockMemory, num_blocks: int) -> AsyncIterator[list[Tier]]:
    if name == "host":
        yield []
    elif name == "disk":
        num_bytes = num_blocks * stride_bytes(memory.block_bytes)
        async with open_disk(directory, num_bytes, memory.block_bytes, memory.fingerprint) as disk:
            yield [disk]
    elif name in ("redis", "s3"):
        async with open_shared(name, directory, memory) as shared:
            yield [shared]
    else:
        yield [SlowTier(TIERS[name])]


@asynccontextmanager
async def open_shared(name: str, directory: Path, memory: BlockMemory) -> AsyncIterator[Tier]:
    """Open a tier over a Redis by unix socket, or over the S3 stub of the tests; either is a process of its own."""
    await anyio.Path(directory).mkdir()
    port = free_port()
    if name == "redis":
        command = ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"]
    else:
        command = [sys.executable, str(STUB), str(port), str(directory / "faults")]
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    server = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await anyio.sleep(1.0)
        redis = RedisTierConfig(url=f"unix://{directory}/redis.sock" if name == "redis" else "")
        config = OffloadConfig(redis=redis, s3=S3TierConfig(url="s3://bench-blocks" if name == "s3" else ""))
        [store] = make_stores(config)
        async with MemoryBroker().connect("w-1") as bus, anyio.create_task_group() as tasks:
            await bus.ensure()
            tier = RemoteTier(
                store,
                bus,
                model="bench",
                worker="w-1",
                fingerprint=memory.fingerprint,
                block_bytes=frame_bytes(memory.block_bytes),
                quota=Quota(0, 0, 600.0),
                keep_s=600.0,
            )
            tasks.start_soon(tier.run)
            yield tier
            tasks.cancel_scope.cancel()
    finally:
        server.kill()
        server.wait()


def make_prompt(length: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


EngineMaker = Callable[[int], TorchDriver | MockEngine]
"""Makes an engine with so many blocks."""


async def compare(make: EngineMaker, directory: Path, name: str, length: int, repeats: int) -> None:
    """Measure one tier and one length: two prompts in turn, of which the device holds none."""
    num_blocks = max(40, -(-length // BLOCK_SIZE) + 4)
    prompts = [make_prompt(length, seed) for seed in (1, 2)]
    eviction = make_prompt(num_blocks * BLOCK_SIZE - 2, 3)
    engine = make(num_blocks)
    async with (
        drive(make(num_blocks)) as plain,
        open_tier(name, directory / f"{name}-{length}", engine.memory, 20 * num_blocks) as tiers,
        drive_tiered(engine, 4 * num_blocks, *tiers) as (tiered, host, _),
    ):

        async def leave() -> None:
            """Let everything leave the device, and host memory if there is a tier below."""
            await tiered.ask(eviction, 1)
            await plain.ask(eviction, 1)
            await anyio.sleep(0.1 + num_blocks / 2000)  # until it is all copied out
            if tiers:
                forget(host)

        for size in (16, 128, 512, 64, 400):
            await tiered.ask(make_prompt(min(size, length), size), 1)
        for prompt in (*prompts, *prompts):  # computed, written on, and the tier probed
            await tiered.ask(prompt, 1)
            await anyio.sleep(0.1)
            await leave()
        off: list[Answer] = []
        on: list[Answer] = []
        for number in range(repeats):
            prompt = prompts[number % 2]
            sides = [(plain, off), (tiered, on)]
            for one, answers in sides if number % 4 < 2 else reversed(sides):
                answers.append(await one.ask(prompt, 1))
            await leave()
        worst = await _become_dead(tiers, tiered, plain, prompts[0])
    assert all(a.tokens == b.tokens for a, b in zip(on, off, strict=True)), "tokens differ"
    without_s, with_s = (percentile([answer.ttft_s for answer in each], 0.5) for each in (off, on))
    ratio = percentile([a.ttft_s / b.ttft_s for a, b in zip(on, off, strict=True)], 0.5)
    least = min([answer.ttft_s for answer in on]) / min([answer.ttft_s for answer in off])
    loop_off_s, loop_on_s = (percentile([answer.loop_s for answer in each], 0.5) for each in (off, on))
    loaded = percentile([answer.cached_tokens for answer in on], 0.5)
    print(
        f"{name:>6} {length:>5} tokens: off {without_s * 1e3:8.2f} ms, on {with_s * 1e3:8.2f} ms "
        f"= {ratio:.3f}, of the least {least:.3f} ({loaded:.0f} loaded), "
        f"of which the event loop {loop_off_s * 1e3:.2f} and {loop_on_s * 1e3:.2f}{worst}",
        flush=True,
    )


def forget(host: HostArena) -> None:
    """Let all blocks that nobody is moving leave host memory."""
    slots = host.slots
    slots.remove([slots.key_at(slot) for slot in range(slots.num_slots)])


async def _become_dead(tiers: list[Tier], tiered: Driven, plain: Driven, prompt: list[int]) -> str:
    """Let a fast tier die, and say what the next request pays for it."""
    if not tiers or not isinstance(tiers[0], SlowTier) or tiers[0].delay_s:
        return ""
    tiers[0].delay_s = float("inf")
    off, on = await plain.ask(prompt, 1), await tiered.ask(prompt, 1)
    return f"; as it dies {on.ttft_s / off.ttft_s:.3f}"


async def measure(engine: str, lengths: Sequence[int], names: Sequence[str], repeats: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_model(directory)
        make = make_mock if engine == "mock" else partial(make_engine, directory)
        for name in names:
            for length in lengths:
                await compare(make, directory, name, length, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="torch", choices=("torch", "mock"), help="mock: as fast as an H100")
    parser.add_argument("--lengths", type=int, nargs="+", default=[17, 65, 257, 1025, 4097, 8000])
    parser.add_argument("--tiers", nargs="+", default=list(TIERS), choices=list(TIERS))
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    work = partial(measure, arguments.engine, arguments.lengths, arguments.tiers, arguments.repeats)
    anyio.run(work, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
