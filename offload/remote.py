"""I/O. A store that the workers of a model share, as a tier of each: what one stored, every other one can load.

What is there is told on the bus (`TierBatch`), by whoever stored it, found it, or looked for it in vain, so that
workers and routers know without asking the store. What nobody told of is asked of the store in the background, by its
first block: it is a miss now, and a hit the next time.
"""

import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing

import anyio
import msgspec
import structlog
from anyio import to_thread

from bus.codec import Codec, codec, encode
from bus.errors import BusUnavailable, BuswayError, Malformed
from bus.messages.base import pack_u64
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent, TierBatch
from bus.metrics import MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming
from kv_events.shared import SharedBlocks
from offload.key import SPACE_BYTES, BlockKey, Space, space_of
from offload.quota import Quota
from offload.store import Blob, Got, Store, StoreName, TierUnavailable, owner_of
from offload.tier import Frame, Medium, Presence, Retention

MAX_KNOWN_BLOCKS = 2_000_000
MAX_PROBES = 64
"""Chains that wait to be asked for; the one that waits for longest gives way."""
MAX_LISTED = 65_536
MAX_PROBED = 1024
"""Blocks of a chain that are asked for when its first one is there."""
MAX_KEPT = 262_144
"""Blocks of which this worker knows how long they stay."""
KEEP_MARGIN = 1.125
"""A pin is made so much longer than asked, so that one that is asked for with every turn is not made with each."""
MAX_TOLD_BYTES = 2**40
"""Of one message: what nobody can have stored at once must not use up the quota of all."""
MAX_COUNTED = 65_536
PAUSE_S = 1.0
"""Between a failure of the store and the next question to it."""

log = structlog.get_logger()
_batches = codec(TierBatch)
_events = Codec[KvEvent](KvEvent)
_malformed = MALFORMED_MESSAGES.labels("tier")


class RemoteTier:
    """A `Tier` while `run` runs. Its events go to the fleet from here, `take_events` has none."""

    medium: Medium = "remote"

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        model: str,
        worker: str,
        fingerprint: str,
        block_bytes: int,
        quota: Quota,
        keep_s: float,
        wall: Callable[[], float],
    ) -> None:
        """`model` is a slug, `fingerprint` the engine's, `block_bytes` the size of a frame.

        Blocks stay for `keep_s` in the store, pinned ones longer.
        """
        self.owner = owner_of(store, fingerprint)
        """Name under which all workers that understand these bytes tell of the store."""
        self._space = space_of(fingerprint)
        self._store = store
        self._bus = bus
        self._subject = bus.subjects.tier(model, self.owner)
        self._worker = worker
        self._quota = quota
        self._block_bytes = block_bytes
        self._keep_s = keep_s
        self._wall = wall
        self._known = SharedBlocks(MAX_KNOWN_BLOCKS)
        self._storing: set[BlockKey] = set()
        self._counted: dict[tuple[str, float], None] = {}
        """Messages that the quota counts: what comes while others are replayed comes twice."""
        self._kept: dict[BlockKey, float] = {}
        """Until when blocks stay at least, unix seconds, where that is known."""
        self._probes: deque[list[BlockKey]] = deque(maxlen=MAX_PROBES)
        self._has_probes = anyio.Event()
        self._failed_at: float | None = None

    @property
    def name(self) -> StoreName:
        return self._store.name

    def lookup(self, keys: Sequence[BlockKey]) -> list[Presence]:
        """Say what is known; the first block that is not is asked for in the background."""
        found: list[Presence] = []
        for key in keys:
            if self._known.has(key.block_hash):
                found.append(Presence.HIT)
            else:
                found.append(Presence.PENDING if key in self._storing else Presence.MISS)
        if Presence.MISS in found and not self._is_resting():
            first = found.index(Presence.MISS)
            self._probes.append(list(keys[first : first + MAX_PROBED]))
            self._has_probes.set()
        return found

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Blocks leave by their age here, used or not."""

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        done = [self._known.has(frame.key.block_hash) for frame in frames]
        now = self._wall()
        keep_s = max(self._keep_s, KEEP_MARGIN * (retention.pinned_until - now))
        new = [f for f, is_there in zip(frames, done, strict=True) if not is_there and f.key not in self._storing]
        if not new:
            return done
        space, cost = new[0].key.space, self._cost(keep_s)
        stored = await self._put(new[: self._room(space, cost, now)], keep_s)
        if stored:
            events = _stored_events(stored)
            for event in events:
                self._known.apply(event)
            self._note_kept([frame.key for frame in stored], now + keep_s)
            self._tell_counted(events, space, cost * len(stored), now)
        kept = {frame.key for frame in stored}
        return [is_there or frame.key in kept for frame, is_there in zip(frames, done, strict=True)]

    async def retain(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        """See `Tier.retain`: a pin takes of the quota for the time that it adds, so far as that is known."""
        now, until = self._wall(), retention.pinned_until
        short = [key for key in keys if self._kept.get(key, now) < until]
        if not short:
            return
        keep_s = KEEP_MARGIN * (until - now)
        space, cost = short[0].space, self._cost(now + keep_s - min([self._kept.get(key, now) for key in short]))
        kept = await self._keep(short[: self._room(space, cost, now)], keep_s)
        if kept:
            self._note_kept(kept, now + keep_s)
            self._tell_counted([], space, cost * len(kept), now)

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        try:
            got = await self._store.get([Blob(frame.key, frame.view) for frame in frames])
        except TierUnavailable as error:
            self._note_failure(error)
            return [False] * len(frames)
        self._note_success()
        self._forget([frame.key.block_hash for frame, each in zip(frames, got, strict=True) if each is Got.ABSENT])
        return [each is Got.ALL for each in got]

    async def remove(self, keys: Sequence[BlockKey]) -> None:
        """Delete blocks for all workers."""
        self._forget([key.block_hash for key in keys])
        try:
            await self._store.delete(keys)
        except TierUnavailable as error:
            self._note_failure(error)

    def take_events(self) -> list[KvEvent]:
        return []

    def on_tier(self, message: Incoming) -> None:
        """Take what a worker, this one too, tells of the store."""
        try:
            batch = _batches.decode(message.payload)
            if batch.owner != self.owner:
                raise Malformed("the subject of another tier")
            is_counted = len(batch.space) in (0, SPACE_BYTES) and 0 <= batch.num_bytes <= MAX_TOLD_BYTES
            if not is_counted or not 0.0 <= batch.at < float("inf"):
                raise Malformed("no space, number of bytes, or time")
            for raw in batch.events:
                self._known.apply(_events.decode(raw))
        except Malformed:
            _malformed.inc()
            return
        if batch.num_bytes and batch.worker != self._worker and (batch.worker, batch.at) not in self._counted:
            self._counted[batch.worker, batch.at] = None
            if len(self._counted) > MAX_COUNTED:
                del self._counted[next(iter(self._counted))]
            self._quota.note(batch.space, batch.num_bytes, batch.at, self._wall())

    async def run(self) -> None:
        """Listen, replay what was told lately, and ask the store for what nobody told of, until cancelled."""
        subscription = self._bus.subscribe(self._subject, self.on_tier)
        try:
            await self._learn()
            log.info(
                "tier.opened", tier=self.name, owner=self.owner, store=self._store.location, known=len(self._known)
            )
            while True:
                await self._has_probes.wait()
                self._has_probes = anyio.Event()
                while self._probes:
                    try:
                        await self._probe(self._probes.pop())
                    except TierUnavailable as error:
                        self._note_failure(error)
        finally:
            subscription.unsubscribe()
            with anyio.CancelScope(shield=True):
                await self._store.aclose()

    async def _learn(self) -> None:
        """Find out what is there: from what was told, and where nobody told anything, from the store's own list."""
        try:
            await self._bus.replay("KV", self._subject, self.on_tier)
        except BuswayError as error:
            log.warning("tier.not_replayed", tier=self.name, reason=str(error))
        if len(self._known):
            return
        try:
            async with aclosing(self._store.listing(self._space)) as listing:
                async for part in listing:
                    for each in part:
                        self._known.store(0, array("Q", [each.key.block_hash]))
                    if len(self._known) >= MAX_LISTED:
                        break
        except TierUnavailable as error:
            self._note_failure(error)

    async def _probe(self, keys: list[BlockKey]) -> None:
        """Ask for the first block of a chain, and for the others if it is there."""
        if self._known.has(keys[0].block_hash):
            return
        [is_there] = await self._store.has(keys[:1])
        self._note_success()
        if not is_there:
            return
        there = [True, *(await self._store.has(keys[1:]))] if len(keys) > 1 else [True]
        found = keys[: there.index(False)] if False in there else keys
        # Whoever asks gives a chain, and nobody knows the block before its first one.
        event = BlocksStored(0, pack_u64([key.block_hash for key in found]), "remote")
        self._known.apply(event)
        self._tell([event])

    async def _put(self, frames: Sequence[Frame], keep_s: float) -> list[Frame]:
        """Store frames and return those that are there now."""
        if not frames:
            return []
        keys = {frame.key for frame in frames}
        self._storing |= keys
        try:
            await to_thread.run_sync(_seal, frames)
            done = await self._store.put([Blob(frame.key, frame.view) for frame in frames], keep_s)
        except TierUnavailable as error:
            self._note_failure(error)
            return []
        finally:
            self._storing -= keys
        self._note_success()
        return [frame for frame, is_there in zip(frames, done, strict=True) if is_there]

    async def _keep(self, keys: Sequence[BlockKey], keep_s: float) -> list[BlockKey]:
        """Let blocks stay and return those that are there."""
        if not keys:
            return []
        try:
            there = await self._store.keep(keys, keep_s)
        except TierUnavailable as error:
            self._note_failure(error)
            return []
        self._note_success()
        self._forget([key.block_hash for key, is_there in zip(keys, there, strict=True) if not is_there])
        return [key for key, is_there in zip(keys, there, strict=True) if is_there]

    def _cost(self, keep_s: float) -> int:
        """Return what a block that stays for so long takes of the quota, which is for `self._keep_s`."""
        return math.ceil(self._block_bytes * max(0.0, keep_s) / self._keep_s)

    def _room(self, space: Space, cost: int, now: float) -> int | None:
        """Return for how many blocks there is room beside those that are being stored, None for any number."""
        room = self._quota.room(space, now)
        return max(0, room // cost - len(self._storing)) if room is not None and cost else None

    def _note_kept(self, keys: Sequence[BlockKey], until: float) -> None:
        for key in keys:
            self._kept.pop(key, None)
            self._kept[key] = until
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]

    def _forget(self, hashes: Sequence[int]) -> None:
        """Note, and tell, that blocks are not there that were believed to be."""
        gone = [block for block in hashes if self._known.has(block)]
        if gone:
            gone.reverse()  # a chain is best removed from its end
            event = BlocksRemoved(pack_u64(gone), "remote")
            self._known.apply(event)
            self._tell([event])

    def _tell_counted(self, events: Iterable[KvEvent], space: bytes, num_bytes: int, now: float) -> None:
        """Tell of blocks that take of the quota, and count them here."""
        self._quota.note(space, num_bytes, now, now)
        self._tell(events, space, num_bytes, now)

    def _tell(self, events: Iterable[KvEvent], space: bytes = b"", num_bytes: int = 0, at: float = 0.0) -> None:
        raw = [msgspec.Raw(encode(event)) for event in events]
        try:
            self._bus.publish(self._subject, encode(TierBatch(self.owner, self._worker, raw, space, num_bytes, at)))
        except (BusUnavailable, Malformed):
            pass  # others find the blocks when they look for them

    def _note_failure(self, error: TierUnavailable) -> None:
        if self._failed_at is None:
            log.warning("tier.failed", tier=self.name, reason=str(error))
        self._failed_at = time.monotonic()
        self._probes.clear()

    def _note_success(self) -> None:
        if self._failed_at is not None:
            log.info("tier.recovered", tier=self.name)
        self._failed_at = None

    def _is_resting(self) -> bool:
        return self._failed_at is not None and time.monotonic() - self._failed_at < PAUSE_S


def _seal(frames: Iterable[Frame]) -> None:
    for frame in frames:
        frame.seal()


def _stored_events(frames: Sequence[Frame]) -> list[BlocksStored]:
    """Return the events of frames, those that follow each other in one."""
    chains: list[tuple[int, array[int]]] = []
    for frame in frames:
        if not chains or chains[-1][1][-1] != frame.parent_hash:
            chains.append((frame.parent_hash, array("Q")))
        chains[-1][1].append(frame.key.block_hash)
    return [BlocksStored(parent, pack_u64(blocks), "remote") for parent, blocks in chains]
