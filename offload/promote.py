"""I/O. Brings blocks from the tiers into host memory, each once at a time, whether anybody waits for it or not."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import anyio
from anyio import to_thread

from bus.metrics import OFFLOAD_BLOCKS, OFFLOAD_BYTES, OFFLOAD_SECONDS
from offload.copier import INLINE_BYTES
from offload.gate import Gate
from offload.host import HostArena
from offload.key import BlockKey, is_sound
from offload.spawn import Spawner
from offload.tier import ORDINARY, Frame, Tier

MAX_ARRIVALS = 32
"""Loads under way; one more is not begun."""
PROBE_SIZES = (1, 7, 24)
"""Blocks of the loads that measure a tier: of several sizes, to tell latency from bandwidth.

A tier that is trusted is measured again with the largest: what only ever brought single blocks would seem to take as
long for each of many. Where more are wanted than any load so far tells about, it is measured with as many as those do
tell about, up to `MAX_PROBE_PART` of host memory, if they would pay: what is slow to begin pays with many only.
"""
MAX_PROBE_PART = 0.125


class Arrival:
    """One load from one tier: `done` is set when its blocks are in host memory, or will not be."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.done = anyio.Event()


class Link:
    """A block in a chain: its key and the hash of the block before."""

    __slots__ = ("key", "parent_hash")

    def __init__(self, key: BlockKey, parent_hash: int) -> None:
        self.key = key
        self.parent_hash = parent_hash


class Promoter:
    """Loads run to their end, also when nobody waits any more: the blocks serve whoever comes next."""

    def __init__(self, host: HostArena, tiers: Mapping[str, Tier], gate: Gate, spawner: Spawner) -> None:
        self._host = host
        self._tiers = tiers
        self._gate = gate
        self._spawner = spawner
        self._arriving: dict[BlockKey, Arrival] = {}
        self._num_arrivals = 0
        self._probing: set[str] = set()

    def arrival_of(self, key: BlockKey) -> Arrival | None:
        """Return the load that brings a block, if there is one."""
        return self._arriving.get(key)

    def start(self, tier: str, links: Sequence[Link]) -> Arrival | None:
        """Begin to load blocks; those that are here, on their way or without room are left out. None: no load began."""
        slots: list[int] = []
        now = time.time()
        if self._num_arrivals < MAX_ARRIVALS:
            for link in links:
                slot = self._host.slots.prepare_store(link.key, link.parent_hash, ORDINARY, now)
                if slot is not None:
                    slots.append(slot)
        if not slots:
            return None
        self._num_arrivals += 1
        arrival = Arrival(tier)
        frames = [self._host.frame(slot) for slot in slots]
        for frame in frames:
            self._arriving[frame.key] = arrival
        self._spawner.start(partial(self._load, arrival, slots, frames))
        return arrival

    def is_probe_due(self, tier: str) -> bool:
        """Say whether it is time to measure a tier."""
        return tier not in self._probing and self._gate.is_probe_due(tier, time.perf_counter())

    def probe(self, tier: str, links: Sequence[Link]) -> None:
        """Measure a tier by loading these blocks; nobody waits, and they are in host memory then."""
        if links:
            self._probing.add(tier)
            self._spawner.start(partial(self._probe, tier, list(links)))

    async def _probe(self, tier: str, links: list[Link]) -> None:
        try:
            for size in [self._next_size(tier, len(links))] if self._gate.is_open(tier) else PROBE_SIZES:
                part, links = links[:size], links[size:]
                arrival = self.start(tier, part)
                if arrival is None:
                    return
                await arrival.done.wait()
                if not self._gate.is_probe_due(tier, time.perf_counter()):
                    return  # it failed, or is proven
        finally:
            self._probing.discard(tier)

    def _next_size(self, tier: str, num_wanted: int) -> int:
        room = self._gate.room(tier)
        if num_wanted <= room or not self._gate.would_pay(tier, num_wanted):
            return PROBE_SIZES[-1]
        return max(PROBE_SIZES[-1], min(room, int(MAX_PROBE_PART * self._host.slots.num_slots)))

    async def _load(self, arrival: Arrival, slots: list[int], frames: list[Frame]) -> None:
        """Load, check, and make loadable what is sound; nothing else ever is, however this ends."""
        sound: list[bool] = [False] * len(frames)
        try:
            sound = await self._load_checked(arrival.tier, frames)
        finally:
            good = [slot for slot, is_good in zip(slots, sound, strict=True) if is_good]
            self._host.slots.complete_store(good)
            self._host.slots.abort_store([slot for slot, is_good in zip(slots, sound, strict=True) if not is_good])
            for frame in frames:
                del self._arriving[frame.key]
            self._num_arrivals -= 1
            arrival.done.set()

    async def _load_checked(self, name: str, frames: list[Frame]) -> list[bool]:
        tier = self._tiers[name]
        started_at = time.perf_counter()
        came = await tier.load(frames)
        if sum([len(frame.view) for frame in frames]) <= INLINE_BYTES:
            sound = _check(frames, came)
        else:
            sound = await to_thread.run_sync(_check, frames, came)
        now = time.perf_counter()
        num_came, num_sound = sum(came), sum(sound)
        if num_sound:
            self._gate.note_load(name, len(frames), now - started_at, now)
        else:
            self._gate.note_failure(name, now)
        if num_sound < num_came:
            await tier.remove([frame.key for frame, a, b in zip(frames, came, sound, strict=True) if a and not b])
        outcomes = {"loaded": num_sound, "broken": num_came - num_sound, "missed": len(frames) - num_came}
        for outcome, count in outcomes.items():
            OFFLOAD_BLOCKS.labels(name, outcome).inc(count)
        OFFLOAD_BYTES.labels(name, "load").inc(sum([len(frame.view) for frame in frames[:num_came]]))
        OFFLOAD_SECONDS.labels(name, "load").inc(now - started_at)
        return sound


def _check(frames: list[Frame], came: list[bool]) -> list[bool]:
    return [is_here and is_sound(frame.view, frame.key) for frame, is_here in zip(frames, came, strict=True)]
