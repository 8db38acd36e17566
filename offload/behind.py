"""I/O. Writes on into a tier, in the background, what came into host memory: nobody ever waits for a store."""

import time
from collections import deque
from collections.abc import Sequence

import anyio

from bus.metrics import OFFLOAD_BLOCKS, OFFLOAD_BYTES, OFFLOAD_SECONDS
from offload.host import HostArena
from offload.key import BlockKey
from offload.tier import ORDINARY, Presence, Retention, Tier

BATCH = 64
"""Blocks of one store, at most: pinned in host memory while it lasts."""
NUM_STORES = 4
"""Under way at a time: books are kept and checksums made while the tier writes."""
MAX_PINNED_PART = 0.25
"""Of host memory: with less, one store at a time."""
MAX_QUEUED = 65_536
"""Blocks that wait to be written on; when there are more, the oldest are left out (host memory still has them)."""


class WriteBehind:
    """What is to go from host memory into one tier, in order."""

    def __init__(self, tier: Tier, host: HostArena) -> None:
        self._tier = tier
        self._host = host
        self._num_stores = max(1, min(NUM_STORES, int(MAX_PINNED_PART * host.slots.num_slots) // BATCH))
        self._queue: deque[tuple[Sequence[BlockKey], Retention]] = deque()
        self._num_queued = 0
        self._has_work = anyio.Event()
        self._became_idle = anyio.Event()
        self._became_idle.set()

    def offer(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        """Have a chain written on while it is in host memory; what the tier has already, it is to keep for as long."""
        for start in range(0, len(keys), BATCH):
            self._queue.append((keys[start : start + BATCH], retention))
        self._num_queued += len(keys)
        while self._num_queued > MAX_QUEUED:
            dropped, _ = self._queue.popleft()
            self._num_queued -= len(dropped)
            OFFLOAD_BLOCKS.labels(self._tier.name, "dropped").inc(len(dropped))
        self._became_idle = anyio.Event()
        self._has_work.set()

    async def wait_idle(self) -> None:
        """Wait until all that was offered is written or was given up."""
        await self._became_idle.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._has_work.wait()
            self._has_work = anyio.Event()
            while self._queue:
                # What is to be kept for longer may be what is being stored, and is known to the tier after that.
                async with anyio.create_task_group() as tasks:
                    for _ in range(self._num_stores):
                        tasks.start_soon(self._store_queued, self._queue[0][1])
            self._became_idle.set()

    async def _store_queued(self, retention: Retention) -> None:
        """Store what comes next with this retention, batch by batch."""
        while chains := self._take_batch(retention):
            await self._store(chains, retention)

    def _take_batch(self, retention: Retention) -> list[Sequence[BlockKey]]:
        """Return the chains that come next with this retention, of one space, and of `BATCH` blocks together."""
        chains: list[Sequence[BlockKey]] = []
        room = BATCH
        while self._queue:
            keys, kept = self._queue[0]
            if kept != retention or len(keys) > room or (chains and keys[0].space != chains[0][0].space):
                break
            chains.append(keys)
            room -= len(keys)
            self._num_queued -= len(keys)
            self._queue.popleft()
        return chains

    async def _store(self, chains: Sequence[Sequence[BlockKey]], retention: Retention) -> None:
        keys = [key for chain in chains for key in chain]
        found = [presence for chain in chains for presence in self._tier.lookup(chain)]
        if retention != ORDINARY:
            held = [key for key, presence in zip(keys, found, strict=True) if presence is Presence.HIT]
            await self._tier.retain(held, retention)
        new = dict.fromkeys([key for key, presence in zip(keys, found, strict=True) if presence is Presence.MISS])
        slots = self._host.slots.prepare_load_any(new)
        if not slots:
            return
        started_at = time.perf_counter()
        try:
            frames = [self._host.frame(slot) for slot in slots]
            stored = sum(await self._tier.store(frames, retention))
        finally:
            self._host.slots.complete_load(slots)
        name = self._tier.name
        OFFLOAD_BLOCKS.labels(name, "stored").inc(stored)
        OFFLOAD_BLOCKS.labels(name, "dropped").inc(len(slots) - stored)
        OFFLOAD_BYTES.labels(name, "store").inc(stored * self._host.block_bytes)
        OFFLOAD_SECONDS.labels(name, "store").inc(time.perf_counter() - started_at)
