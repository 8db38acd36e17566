"""I/O. Moves blocks between an engine's memory, host memory and the tiers below.

Host memory is the one place where the engine's bytes and those of the tiers meet: a tier that is late writes into a
frame that nobody waits for any more, never into a block of the engine.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from bus.messages.fleet import TierRate
from bus.messages.kv import KvEvent
from bus.metrics import OFFLOAD_BLOCKS, OFFLOAD_BYTES, OFFLOAD_HELD_BLOCKS, OFFLOAD_LATE, OFFLOAD_SAVED_TOKENS
from offload.behind import WriteBehind
from offload.gate import NOTHING, Gate, LoadPlan
from offload.host import HostArena
from offload.promote import Link, Promoter
from offload.spawn import Spawner
from offload.tier import Presence, Retention, Tier

NUM_COPIERS = 2
IDLE_FACTOR = 4
"""An idle engine is filled in the event loop with so many times what is copied there beside steps: no token waits."""
FLUSH_S = 2.0
"""Bound on writing on what is in host memory when the mover is closed."""

_held = OFFLOAD_HELD_BLOCKS.labels("host")
_evicted = OFFLOAD_BLOCKS.labels("host", "evicted")

Move = Callable[[Sequence[int], Sequence[int]], None]
"""Copies between slots of host memory and addresses, as `HostArena.read_in` and `write_out` do."""


class Mover:
    """Made by `open_mover`. All calls are made in the event loop."""

    def __init__(self, host: HostArena, tiers: Sequence[Tier], gate: Gate, tasks: TaskGroup, block_size: int) -> None:
        self._host = host
        self._tiers = {tier.name: tier for tier in tiers}
        self._gate = gate
        self._block_size = block_size
        self._promoter = Promoter(host, self._tiers, gate, Spawner(tasks))
        self._behind = [WriteBehind(tier, host) for tier in tiers]
        self._copiers = CapacityLimiter(NUM_COPIERS)
        for behind in self._behind:
            tasks.start_soon(behind.run)

    def plan(self, links: Sequence[Link], *, start: int = 0, is_busy: bool = False) -> LoadPlan:
        """Decide how many of these blocks, which the device does not have, to load; `start` others are before them.

        Tiers that nobody may wait for yet are measured meanwhile, with blocks of this very chain.
        """
        if not links:
            return NOTHING
        keys = [link.key for link in links]
        in_host = self._host.slots.lookup(keys)
        num_here = next((i for i, presence in enumerate(in_host) if presence is not Presence.HIT), len(keys))
        holders: list[list[str] | None] = [None] * num_here
        if num_here < len(keys):
            holders += self._holders_below(links[num_here:], in_host[num_here:])
        return self._gate.plan(holders, start=start, is_busy=is_busy)

    def _holders_below(self, links: Sequence[Link], in_host: Sequence[Presence]) -> list[list[str] | None]:
        """Return the holders of blocks up to the first that nobody has, as `Gate.plan` takes them."""
        keys = [link.key for link in links]
        found = {name: tier.lookup(keys) for name, tier in self._tiers.items()}
        for name, presences in found.items():
            if self._promoter.is_probe_due(name):
                places = zip(links, in_host, presences, strict=True)
                absent = [link for link, here, there in places if here is Presence.MISS and there is Presence.HIT]
                self._promoter.probe(name, absent)
        holders: list[list[str] | None] = []
        for position, presence in enumerate(in_host):
            names: list[str] | None = None
            if presence is Presence.MISS:
                names = [name for name in found if found[name][position] is Presence.HIT]
            elif presence is Presence.PENDING:
                arrival = self._promoter.arrival_of(keys[position])
                names = [] if arrival is None else [arrival.tier]
            if names == []:
                break
            holders.append(names)
        return holders

    def measure(self, tier: str, links: Sequence[Link]) -> None:
        """Have these blocks loaded from a tier to know what it takes, before anybody asks for any."""
        self._promoter.probe(tier, links)

    def prefetch(self, links: Sequence[Link], plan: LoadPlan) -> None:
        """Begin to bring what is planned into host memory."""
        for part in plan.parts:
            self._promoter.start(part.tier, [links[position] for position in part.positions])

    def fill_at_once(self, links: Sequence[Link], addresses: Sequence[int], *, is_idle: bool) -> float | None:
        """Load blocks if host memory has them all and the copy is short; return its seconds, None: nothing was loaded.

        `is_idle`: the engine has nothing else to do. Once it is answered, `note_filled` is due.
        """
        if len(links) * self._host.block_bytes > self._host.copier.inline_bytes * (IDLE_FACTOR if is_idle else 1):
            return None
        slots = self._host.slots
        ready = slots.prepare_load([link.key for link in links])
        try:
            if len(ready) < len(links):
                return None
            started_at = time.perf_counter()
            self._host.write_out(ready, addresses)
            return time.perf_counter() - started_at
        finally:
            slots.complete_load(ready)

    def note_filled(self, num_blocks: int, copied_s: float, turn_s: float | None, plan: LoadPlan = NOTHING) -> None:
        """Keep the books of a fill; `turn_s` is what it took from the engine's idleness on, less copies and waits."""
        if num_blocks:
            self._gate.note_copy(num_blocks, copied_s)
        self._count_loaded(num_blocks, plan)
        if turn_s is not None:
            self._gate.note_turn(num_blocks, turn_s)

    async def fill(
        self, links: Sequence[Link], addresses: Sequence[int], plan: LoadPlan, *, idle_since: float | None = None
    ) -> int:
        """Load what is planned to these addresses; return how many of the first blocks are there.

        `idle_since` is when the engine was asked for this, if it had nothing else to do. Returns soon after
        `plan.deadline_s` at the latest; a tier that was not done by then is not trusted for a while.
        Nobody writes to the addresses after this ended, by a cancel either.
        """
        links = links[: plan.num_blocks]
        keys = [link.key for link in links]
        slots = self._host.slots
        held = slots.prepare_load_any(keys)
        try:
            self.prefetch(links, plan)
            arrivals = dict.fromkeys(arrival for key in keys if (arrival := self._promoter.arrival_of(key)) is not None)
            waited_s = -time.perf_counter()
            with anyio.move_on_after(plan.deadline_s):
                for arrival in arrivals:
                    await arrival.done.wait()
            waited_s += time.perf_counter()
            for late in {arrival.tier for arrival in arrivals if not arrival.done.is_set()}:
                self._gate.note_failure(late, time.perf_counter())
                OFFLOAD_LATE.labels(late).inc()
            ready = slots.prepare_load(keys)
        finally:
            slots.complete_load(held)
        try:
            copied_s = await self._copy(self._host.write_out, ready, addresses[: len(ready)])
        finally:
            slots.complete_load(ready)
        turn_s = None if idle_since is None else time.perf_counter() - idle_since - waited_s - copied_s
        self.note_filled(len(ready), copied_s, turn_s, plan)
        return len(ready)

    async def store(self, links: Sequence[Link], addresses: Sequence[int], retention: Retention) -> None:
        """Copy blocks at these addresses, unchanged meanwhile, to host memory, and have them written on."""
        slots, now = self._host.slots, time.time()
        keys = [link.key for link in links]
        taken: list[tuple[int, int]] = []
        for link, address in zip(links, addresses, strict=True):
            slot = slots.prepare_store(link.key, link.parent_hash, retention, now)
            if slot is not None:
                taken.append((slot, address))
        places = [slot for slot, _ in taken]
        try:
            copied_s = await self._copy(self._host.read_in, places, [address for _, address in taken])
        except BaseException:
            slots.abort_store(places)
            raise
        slots.complete_store(places)
        if places:
            self._gate.note_store(len(places), copied_s)
        OFFLOAD_BLOCKS.labels("host", "stored").inc(len(taken))
        OFFLOAD_BYTES.labels("host", "store").inc(len(taken) * self._host.block_bytes)
        for behind in self._behind:
            behind.offer(keys, retention)

    def missing(self, links: Sequence[Link]) -> list[Link]:
        """Return those that host memory neither has nor is about to have."""
        found = self._host.slots.lookup([link.key for link in links])
        return [link for link, presence in zip(links, found, strict=True) if presence is Presence.MISS]

    def touch(self, links: Sequence[Link]) -> None:
        """Note that a request uses these blocks of a chain, be they on the device, in a tier or nowhere yet."""
        keys = [link.key for link in links]
        self._host.slots.touch(keys)
        for tier in self._tiers.values():
            tier.touch(keys)

    def rates(self) -> list[TierRate]:
        """Return what loading costs, from host memory and each tier that may be waited for."""
        names = [name for name in self._tiers if self._gate.is_open(name)]
        below = [(self._tiers[name], self._per_token(name)) for name in names]
        rates = [TierRate(tier.medium, tier.owner, *rate) for tier, rate in below]
        return [TierRate("host", "", *self._per_token(None)), *rates]

    def retain(self, links: Sequence[Link], retention: Retention) -> None:
        """Keep blocks for longer, in host memory and in the tiers below."""
        keys = [link.key for link in links]
        self._host.slots.retain(keys, retention, time.time())
        for behind in self._behind:
            behind.offer(keys, retention)

    def take_events(self) -> list[KvEvent]:
        """Return what came into the tiers of this worker and left them, since the last call."""
        events = self._host.slots.take_events()
        if events:
            _held.set(len(self._host.slots))
            _evicted.inc(self._host.slots.take_num_evicted())
        for tier in self._tiers.values():
            events += tier.take_events()
        return events

    async def flush(self) -> None:
        """Wait until what is in host memory is written on, for `FLUSH_S` at most."""
        with anyio.move_on_after(FLUSH_S):
            for behind in self._behind:
                await behind.wait_idle()

    async def _copy(self, move: Move, slots: Sequence[int], addresses: Sequence[int]) -> float:
        """Copy blocks between host memory and the engine, to the end even when cancelled; return the seconds."""
        if not slots:
            return 0.0
        started_at = time.perf_counter()
        if len(slots) * self._host.block_bytes <= self._host.copier.inline_bytes:
            move(slots, addresses)
        else:
            await to_thread.run_sync(move, slots, addresses, limiter=self._copiers)
        return time.perf_counter() - started_at

    def _per_token(self, tier: str | None) -> tuple[float, float]:
        latency_s, block_s = self._gate.rate(tier)
        return latency_s, block_s / self._block_size

    def _count_loaded(self, num_blocks: int, plan: LoadPlan) -> None:
        from_tier = {part.tier: sum(position < num_blocks for position in part.positions) for part in plan.parts}
        OFFLOAD_BLOCKS.labels("host", "loaded").inc(num_blocks)
        OFFLOAD_BYTES.labels("host", "load").inc(num_blocks * self._host.block_bytes)
        for tier, count in {"host": num_blocks - sum(from_tier.values()), **from_tier}.items():
            OFFLOAD_SAVED_TOKENS.labels(tier).inc(count * self._block_size)


@asynccontextmanager
async def open_mover(host: HostArena, tiers: Sequence[Tier], gate: Gate, *, block_size: int) -> AsyncIterator[Mover]:
    """Run a mover; on leaving, what is in host memory is written on for a while, then all that moves ends."""
    async with anyio.create_task_group() as tasks:
        mover = Mover(host, tiers, gate, tasks, block_size)
        try:
            yield mover
        finally:
            with anyio.CancelScope(shield=True):
                await mover.flush()
            tasks.cancel_scope.cancel()
