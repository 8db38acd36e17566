"""Pure. S3-FIFO (Yang et al., SOSP 2023): what is used once leaves soon, what is used again stays.

New blocks pass through a small queue. Those that were used meanwhile go on into the main queue; the others leave, and
their hashes are remembered for as long as the main queue turns over once: a block that comes back then goes straight
into the main queue.
"""

from array import array
from collections.abc import Callable, Sequence

from offload.policy.order import Chains

SMALL_PART = 0.1
"""Of all slots in the policy: the small queue is drained when it is longer."""
MAX_USES = 3
_SMALL, _MAIN = 0, 1


class S3Fifo:
    """Two queues and the ghosts of who left the small one: 14 to 18 bytes for each slot.

    Ghosts are kept in a table with one place for each value of the hash's low bits, where a new one displaces an old
    one: forgetting a ghost too early costs a second pass through the small queue.
    """

    def __init__(self, num_slots: int, hashes: Sequence[int]) -> None:
        """`hashes` are those of the blocks in the slots, kept by the caller."""
        self._chains = Chains(num_slots, 2)
        self._hashes = hashes
        self._uses = bytearray(num_slots)
        self._queue = bytearray(num_slots)
        self._sizes = [0, 0]
        self._ghosts = array("I", bytes(4 << (num_slots - 1).bit_length()))
        self._ghost_mask = len(self._ghosts) - 1

    def __len__(self) -> int:
        return sum(self._sizes)

    def insert(self, slot: int) -> None:
        place, mark = self._ghost_of(slot)
        was_here = self._ghosts[place] == mark
        if was_here:
            self._ghosts[place] = 0
        self._uses[slot] = 0
        self._push(_MAIN if was_here else _SMALL, slot)

    def touch(self, slot: int) -> None:
        self._uses[slot] = min(MAX_USES, self._uses[slot] + 1)

    def remove(self, slot: int) -> None:
        if self._queue[slot] == _SMALL:
            place, mark = self._ghost_of(slot)
            self._ghosts[place] = mark
        self._unlink(slot)

    def victim(self, is_busy: Callable[[int], bool]) -> int | None:
        """See `Policy.victim`; slots that are met on the way and are busy or were used go on in the main queue."""
        num_busy = 0
        while num_busy <= len(self):
            is_small = self._sizes[_SMALL] > SMALL_PART * len(self) or not self._sizes[_MAIN]
            slot = self._chains.first(_SMALL if is_small else _MAIN)
            if slot is None:
                return None
            if is_busy(slot):
                num_busy += 1
            elif not self._uses[slot]:
                return slot
            else:
                self._uses[slot] = 0 if is_small else self._uses[slot] - 1
            self._unlink(slot)
            self._push(_MAIN, slot)
        return None

    def _push(self, queue: int, slot: int) -> None:
        self._chains.push(queue, slot)
        self._queue[slot] = queue
        self._sizes[queue] += 1

    def _unlink(self, slot: int) -> None:
        self._chains.unlink(slot)
        self._sizes[self._queue[slot]] -= 1

    def _ghost_of(self, slot: int) -> tuple[int, int]:
        """Return where the ghost of the block in a slot belongs, and what stands for it there."""
        block_hash = self._hashes[slot]
        return block_hash & self._ghost_mask, (block_hash >> 32) | 1
