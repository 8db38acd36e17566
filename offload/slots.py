"""Pure. The slots of one tier: what is in them, what comes in, what may not leave yet, what has to.

A block is prepared, then its bytes are moved, then it is completed: only what is complete is ever found. A slot that is
being read is pinned. Nothing here waits or moves bytes.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable, Sequence

from bus.messages.base import pack_u64
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent
from offload.admission import Admission
from offload.index import BlockIndex
from offload.key import BlockKey
from offload.policy import Levels, Lru, Policy, S3Fifo
from offload.tier import Medium, Presence, Retention

MAX_PINNED_PART = 0.5
"""Of all slots that pins with a time may hold: what is pinned beyond that is kept like any other block."""
POLICIES: dict[str, Callable[[int, Sequence[int]], Policy]] = {"lru": lambda n, _: Lru(n), "s3fifo": S3Fifo}
_EMPTY, _FILLING, _READY, _DOOMED = range(4)


class Slots:
    """Books over `num_slots` slots. Times are unix seconds."""

    def __init__(self, num_slots: int, *, policy: str = "lru", medium: Medium, is_selective: bool = False) -> None:
        """`policy` is one of `POLICIES`; `is_selective` guards what is used often against what is seen once."""
        self.num_slots = num_slots
        self._num_evicted = 0
        self._medium = medium
        self._index = BlockIndex(num_slots)
        self._levels = Levels(num_slots, lambda: POLICIES[policy](num_slots, self._index.hashes))
        self._admission = Admission(num_slots) if is_selective else None
        self._states = bytearray(num_slots)
        self._pins = array("H", bytes(2 * num_slots))
        self._priorities = array("b", bytes(num_slots))
        self._num_fresh = num_slots
        self._freed = array("I")
        self._kept: dict[int, float] = {}  # slots pinned until a time; they are not in the levels
        self._expiries: list[tuple[float, int]] = []
        self._events: list[tuple[int, int] | int] = []  # parent and hash of what was stored, hash of what was removed

    def __len__(self) -> int:
        """Return the number of blocks, those that are being filled included."""
        return len(self._index)

    @property
    def num_pinned(self) -> int:
        """Slots that may not be emptied before a time."""
        return len(self._kept)

    def lookup(self, keys: Iterable[BlockKey]) -> list[Presence]:
        """Say of each block whether it is here, or on its way in."""
        return [self._presence(self._index.find(key)) for key in keys]

    def find(self, key: BlockKey) -> int | None:
        """Return the slot of a block, filled or being filled."""
        return self._index.find(key)

    def prepare_store(self, key: BlockKey, parent_hash: int, retention: Retention, now: float) -> int | None:
        """Take a slot to fill; None when the block is here or on its way, or there is no room for it.

        Ends with `complete_store` or `abort_store`.
        """
        if self._index.find(key) is not None:
            return None
        slot = self._take(key.block_hash, now, is_pinned=retention.pinned_until > now)
        if slot is None:
            return None
        self._index.insert(key, parent_hash, slot)
        self._states[slot] = _FILLING
        self._priorities[slot] = retention.priority
        if retention.pinned_until > now:
            self._keep(slot, retention.pinned_until)
        return slot

    def complete_store(self, slots: Sequence[int]) -> None:
        """Make blocks that were filled loadable, in the order of their chain.

        The last one is the first to be evicted: a chain is of no use without its beginning.
        """
        for slot in slots:
            assert self._states[slot] == _FILLING, "filled once"
            self._states[slot] = _READY
            self._events.append((self._index.parents[slot], self._index.hashes[slot]))
        for slot in reversed(slots):
            if slot not in self._kept:
                self._levels.insert(slot, self._priorities[slot])

    def abort_store(self, slots: Iterable[int]) -> None:
        """Give up slots that were not filled."""
        for slot in slots:
            assert self._states[slot] == _FILLING, "filled or given up, not both"
            self._kept.pop(slot, None)
            self._index.remove(slot)
            self._free(slot)

    def prepare_load(self, keys: Iterable[BlockKey]) -> list[int]:
        """Pin the slots of the first keys, as far as they are here without a gap. Ends with `complete_load`."""
        slots = []
        for key in keys:
            slot = self._index.find(key)
            if slot is None or self._states[slot] != _READY:
                break
            self._pins[slot] += 1
            slots.append(slot)
        return slots

    def prepare_load_any(self, keys: Iterable[BlockKey]) -> list[int]:
        """Pin the slots of those that are here, whichever they are. Ends with `complete_load`."""
        found = [self._index.find(key) for key in keys]
        slots = [slot for slot in found if slot is not None and self._states[slot] == _READY]
        for slot in slots:
            self._pins[slot] += 1
        return slots

    def complete_load(self, slots: Iterable[int]) -> None:
        """Unpin slots."""
        for slot in slots:
            self._pins[slot] -= 1
            if self._states[slot] == _DOOMED and not self._pins[slot]:
                self._free(slot)

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Note that a request uses these blocks of a chain, here or not."""
        for key in reversed(keys):
            if self._admission is not None:
                self._admission.note(key.block_hash)
            slot = self._index.find(key)
            if slot is not None and self._states[slot] == _READY and slot not in self._kept:
                self._levels.touch(slot)

    def remove(self, keys: Iterable[BlockKey]) -> None:
        """Forget blocks; a slot that is pinned is empty when it is not any more."""
        for key in keys:
            slot = self._index.find(key)
            if slot is not None and self._states[slot] == _READY:
                self._forget(slot)
                if self._pins[slot]:
                    self._states[slot] = _DOOMED
                else:
                    self._free(slot)

    def retain(self, keys: Iterable[BlockKey], retention: Retention, now: float) -> None:
        """Let blocks that are here, or on their way, count as stored with this retention, if it keeps them longer."""
        for key in keys:
            slot = self._index.find(key)
            if slot is None:
                continue
            is_in_levels = self._states[slot] == _READY and slot not in self._kept
            if retention.priority > self._priorities[slot]:
                self._priorities[slot] = retention.priority
                if is_in_levels:
                    self._levels.remove(slot)
                    self._levels.insert(slot, retention.priority)
            until = retention.pinned_until
            is_longer = until > max(now, self._kept.get(slot, 0.0))
            if is_longer and self._keep(slot, until) and is_in_levels:
                self._levels.remove(slot)

    def restore(self, slot: int, key: BlockKey, parent_hash: int, retention: Retention) -> None:
        """Put a block into a slot in which it was found; before any other call, what is to leave first comes first."""
        if self._states[slot] != _EMPTY or self._index.find(key) is not None:
            return
        self._index.insert(key, parent_hash, slot)
        self._states[slot] = _FILLING
        self._priorities[slot] = retention.priority
        if retention.pinned_until:
            self._keep(slot, retention.pinned_until)
        self.complete_store([slot])

    def end_restore(self) -> None:
        """Have the other slots ready to be filled."""
        self._num_fresh = 0
        self._freed = array("I", [slot for slot in reversed(range(self.num_slots)) if self._states[slot] == _EMPTY])

    @property
    def _can_pin(self) -> bool:
        return len(self._kept) < MAX_PINNED_PART * self.num_slots

    def key_at(self, slot: int) -> BlockKey:
        """Return the key of the block in a slot that has one."""
        return self._index.key_at(slot)

    def parent_at(self, slot: int) -> int:
        """Return the hash of the block before the one in a slot."""
        return self._index.parents[slot]

    def retention_at(self, slot: int) -> Retention:
        """Return how long the block in a slot is to be kept."""
        return Retention(self._priorities[slot], self._kept.get(slot, 0.0))

    def take_num_evicted(self) -> int:
        """Return how many blocks had to leave since the last call."""
        count, self._num_evicted = self._num_evicted, 0
        return count

    def take_events(self) -> list[KvEvent]:
        """Return what came and went since the last call, in order, neighbours of a chain together."""
        events: list[KvEvent] = []
        run: list[int] = []
        first_parent, is_stored = 0, False
        for note in self._events:
            parent, block_hash = note if isinstance(note, tuple) else (None, note)
            if run and ((parent is not None) != is_stored or (is_stored and parent != run[-1])):
                events.append(_event(run, first_parent, self._medium, is_stored=is_stored))
                run = []
            if not run:
                first_parent, is_stored = parent or 0, parent is not None
            run.append(block_hash)
        if run:
            events.append(_event(run, first_parent, self._medium, is_stored=is_stored))
        self._events = []
        return events

    def _presence(self, slot: int | None) -> Presence:
        if slot is None:
            return Presence.MISS
        return Presence.HIT if self._states[slot] == _READY else Presence.PENDING

    def _take(self, block_hash: int, now: float, *, is_pinned: bool) -> int | None:
        """Return an empty slot, emptied for a block of this hash if need be; None when it is not worth another one."""
        if self._freed:
            return self._freed.pop()
        if self._num_fresh:
            self._num_fresh -= 1
            return self.num_slots - 1 - self._num_fresh
        self._let_go(now)
        slot = self._levels.victim(lambda slot: self._pins[slot] > 0)
        if slot is None:
            return None
        admission = None if is_pinned and self._can_pin else self._admission
        if admission is not None and not admission.admits(block_hash, self._index.hashes[slot]):
            return None
        self._forget(slot)
        self._num_evicted += 1
        return slot

    def _forget(self, slot: int) -> None:
        if self._kept.pop(slot, None) is None:
            self._levels.remove(slot)
        self._events.append(self._index.hashes[slot])
        self._index.remove(slot)

    def _free(self, slot: int) -> None:
        self._states[slot] = _EMPTY
        self._freed.append(slot)

    def _keep(self, slot: int, until: float) -> bool:
        """Hold a slot until a time, unless too many are held already; say whether it is held."""
        if slot not in self._kept and not self._can_pin:
            return False
        self._kept[slot] = until
        heapq.heappush(self._expiries, (until, slot))
        if len(self._expiries) > 2 * len(self._kept) + 64:  # prolonged again and again
            self._expiries = [(until, slot) for slot, until in self._kept.items()]
            heapq.heapify(self._expiries)
        return True

    def _let_go(self, now: float) -> None:
        """Let the policy have slots whose time has passed."""
        while self._expiries and self._expiries[0][0] <= now:
            until, slot = heapq.heappop(self._expiries)
            if self._kept.get(slot) == until:
                del self._kept[slot]
                if self._states[slot] == _READY:
                    self._levels.insert(slot, self._priorities[slot])


def _event(hashes: list[int], parent_hash: int, medium: Medium, *, is_stored: bool) -> KvEvent:
    return BlocksStored(parent_hash, pack_u64(hashes), medium) if is_stored else BlocksRemoved(pack_u64(hashes), medium)
