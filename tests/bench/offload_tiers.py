"""The tiers that measurements put below an engine: each as it is, or made to take its time, or to die."""

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from bus.config import OffloadConfig, RedisTierConfig, S3TierConfig
from bus.protocol import Bus
from bus.server import free_port
from bus.testing import MemoryBroker
from components.transfer import Transfer, open_transfer
from components.worker.peer_tier import PeerTier, arena_memory
from offload.disk import open_disk
from offload.host import HostArena, stride_bytes
from offload.key import frame_bytes
from offload.quota import Quota
from offload.remote import RemoteTier
from offload.stores import make_stores
from offload.tier import Frame, Retention, Tier
from tests.bench.offload_remote import STUB

TIERS = ("host", "disk", "redis", "s3", "peer")
DEAD_S = 5.0
"""After which a tier that is dead says so."""


def slow_down(tier: Tier, delay_s: float) -> None:
    """Let each load take so much longer; with more than `DEAD_S`, fail after that."""
    load = tier.load

    async def late(frames: Sequence[Frame]) -> list[bool]:
        await anyio.sleep(min(delay_s, DEAD_S))
        return await load(frames) if delay_s <= DEAD_S else [False] * len(frames)

    tier.load = late  # type: ignore[method-assign]


@asynccontextmanager
async def open_tier(name: str, directory: Path, host: HostArena, fingerprint: str) -> AsyncIterator[list[Tier]]:
    """Open one of `TIERS` below `host`, with room for all that a measurement stores."""
    await anyio.Path(directory).mkdir()
    num_bytes = 4 * host.slots.num_slots * stride_bytes(host.block_bytes)
    async with AsyncExitStack() as stack:
        if name == "host":
            yield []
        elif name == "disk":
            yield [await stack.enter_async_context(open_disk(directory, num_bytes, host.block_bytes, fingerprint))]
        elif name == "peer":
            yield [await stack.enter_async_context(_open_peer(host, num_bytes, fingerprint))]
        else:
            yield [await stack.enter_async_context(_open_shared(name, directory, host.block_bytes, fingerprint))]


class _Peer(PeerTier):
    """What is stored here comes into the other worker's host memory, as if that had computed it."""

    def __init__(self, bus: Bus, host: HostArena, transfer: Transfer, other: HostArena) -> None:
        super().__init__(bus, host, transfer, model="bench", worker="w-1")
        self._other = other

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        slots = self._other.slots
        for frame in frames:
            slot = slots.prepare_store(frame.key, frame.parent_hash, retention, 0.0)
            if slot is not None:
                frame.seal()
                self._other.frame(slot).view[:] = frame.view
                slots.complete_store([slot])
        slots.take_events()
        self._holders.store("w-2", [frame.key.block_hash for frame in frames])
        return [True] * len(frames)


@asynccontextmanager
async def _open_peer(host: HostArena, num_bytes: int, fingerprint: str) -> AsyncIterator[Tier]:
    """Open the tier of peers beside one other worker, whose event loop is this one, too."""
    broker = MemoryBroker()
    other = HostArena(num_bytes, host.block_bytes)
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(broker.connect(name)) for name in ("w-1", "w-2")]
        await buses[0].ensure()
        memories = [arena_memory(arena, fingerprint) for arena in (host, other)]
        transfers = [
            await stack.enter_async_context(open_transfer(memory, name, transport="loopback"))
            for name, memory in zip(("bench-1", "bench-2"), memories, strict=True)
        ]
        tier = _Peer(buses[0], host, transfers[0], other)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(tier.run)
        tasks.start_soon(PeerTier(buses[1], other, transfers[1], model="bench", worker="w-2").run)
        yield tier
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _open_shared(name: str, directory: Path, block_bytes: int, fingerprint: str) -> AsyncIterator[Tier]:
    """Open a tier over a Redis by unix socket, or over the S3 stub of the tests; either is a process of its own."""
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
                fingerprint=fingerprint,
                block_bytes=frame_bytes(block_bytes),
                quota=Quota(0, 0, 600.0),
                keep_s=600.0,
                wall=time.time,
            )
            tasks.start_soon(tier.run)
            yield tier
            tasks.cancel_scope.cancel()
    finally:
        server.kill()
        server.wait()
