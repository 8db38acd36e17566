"""Pure. How far a reader is in one worker's events, and what of a batch is new to it."""

from bisect import insort
from collections.abc import Sequence

import msgspec

from bus.messages.kv import KvBatch, KvQuery

MAX_EARLY = 1024
"""Batches beyond a gap that are kept until it closes; when there are more, the oldest go, for an answer is to cover
them."""
MAX_PARTS = 4096


class Update(msgspec.Struct, frozen=True):
    """What to do with the index: forget the worker's blocks first if `is_reset`, then apply the encoded events."""

    is_reset: bool
    events: Sequence[msgspec.Raw]


NOTHING = Update(False, ())


class Splice:
    """Puts live batches, replayed ones, answers and snapshots of one worker together by their numbers.

    Every worker begins with no blocks and event 0, so who knows nothing is at a gap like any other. What comes after a
    gap is applied at once, and again behind what was missing: what holds of a block is what its last event says, so
    this ends with the truth, and until then only what was lost is wrong. A snapshot replaces everything part by part,
    and counts when all parts are there.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.next_seq = 0
        """Number of the first event that the index does not have."""
        self._seen_seq = 0
        """Number behind the last event that is known to have happened."""
        self._is_heard = False
        self._needs_snapshot = False
        self._early: list[KvBatch] = []
        self._snapshot_seq = -1
        """First event after the snapshot that is being put together; -1 if there is none."""
        self._parts_left: set[int] = set()

    @property
    def is_synced(self) -> bool:
        """Whether the index has all that is known to have happened, and the worker was heard at all."""
        return self._is_heard and not self._needs_snapshot and self.next_seq == self._seen_seq

    def query(self) -> KvQuery | None:
        """Return what to ask the worker, None when nothing is missing."""
        if self._needs_snapshot:
            return KvQuery()
        if self.next_seq < self._seen_seq:
            return KvQuery(epoch=self.epoch, since=self.next_seq)
        return None

    def take(self, batch: KvBatch) -> Update:
        """Return what of a batch or part of a snapshot goes to the index now."""
        if batch.epoch < self.epoch:
            return NOTHING
        is_reset = self._follow(batch.epoch)
        self._is_heard = True
        if batch.num_parts:
            update = self._take_part(batch)
        else:
            self._seen_seq = max(self._seen_seq, batch.first_seq + len(batch.events))
            update = Update(False, self._take_events(batch))
        return Update(is_reset or update.is_reset, update.events)

    def hear(self, epoch: int, seq: int) -> bool:
        """Note from a heartbeat that events before `seq` have happened; return whether that begins a new epoch.

        If so, the worker's blocks are to be forgotten.
        """
        if epoch < self.epoch:
            return False
        is_reset = self._follow(epoch)
        self._is_heard = True
        self._seen_seq = max(self._seen_seq, seq)
        return is_reset

    def is_at(self, epoch: int, seq: int) -> bool:
        """Whether the index has exactly the events before `seq`, so that digests can be compared."""
        return epoch == self.epoch and seq == self.next_seq and not self._needs_snapshot

    def distrust(self) -> None:
        """The digests differ: only a snapshot helps, and what comes before it is kept for later."""
        self._needs_snapshot = True

    def _follow(self, epoch: int) -> bool:
        if epoch == self.epoch:
            return False
        is_reset = self.epoch > 0
        self.epoch = epoch
        self.next_seq = self._seen_seq = 0
        self._needs_snapshot = False
        self._snapshot_seq = -1
        self._early.clear()
        return is_reset

    def _take_part(self, part: KvBatch) -> Update:
        if not 0 <= part.part < part.num_parts <= MAX_PARTS or part.first_seq < self.next_seq:
            return NOTHING
        is_reset = False
        if part.first_seq > self._snapshot_seq:
            if part.first_seq == self.next_seq and not self._needs_snapshot:
                return NOTHING
            is_reset = True
            self._needs_snapshot = True
            self._snapshot_seq = part.first_seq
            self._parts_left = set(range(part.num_parts))
            self._seen_seq = max(self._seen_seq, part.first_seq)
        if part.first_seq != self._snapshot_seq or part.part not in self._parts_left:
            return NOTHING
        self._parts_left.discard(part.part)
        if self._parts_left:
            return Update(is_reset, part.events)
        self.next_seq = self._snapshot_seq
        self._snapshot_seq = -1
        self._needs_snapshot = False
        return Update(is_reset, [*part.events, *self._advance()])

    def _take_events(self, batch: KvBatch) -> list[msgspec.Raw]:
        end_seq = batch.first_seq + len(batch.events)
        if end_seq <= self.next_seq:
            return []
        if batch.first_seq == self.next_seq and not self._early and not self._needs_snapshot:
            self.next_seq = end_seq
            return batch.events
        insort(self._early, batch, key=_first_seq)
        events = self._advance()
        if len(self._early) > MAX_EARLY:
            del self._early[0]
        return events or batch.events

    def _advance(self) -> list[msgspec.Raw]:
        """Return the events that follow without a gap, and move on behind them."""
        events: list[msgspec.Raw] = []
        if self._needs_snapshot:
            return events
        num_used = 0
        for batch in self._early:
            if batch.first_seq > self.next_seq:
                break
            events += batch.events[self.next_seq - batch.first_seq :]
            self.next_seq = max(self.next_seq, batch.first_seq + len(batch.events))
            num_used += 1
        del self._early[:num_used]
        return events


def _first_seq(batch: KvBatch) -> int:
    return batch.first_seq
