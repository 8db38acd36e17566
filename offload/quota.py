"""Pure. How much the fleet stored in a shared tier lately, in all and under each cache salt, against what it may.

What is stored leaves the tier after its time, so the bytes of one such time bound what is there; what is to stay longer
counts as so many bytes more. Every worker counts what all of them tell (`TierBatch`): a message that was lost lets a
little more in, and none can be overtaken for long.
"""

from collections import Counter

NUM_SLOTS = 16
"""Parts of the time for which blocks are kept: bytes count for that time, and up to a sixteenth longer."""
MAX_SPACES = 65_536
"""That are told apart; what is stored under more of them counts in all only."""


class Quota:
    """Bounds in bytes; 0 is none."""

    def __init__(self, total_bytes: int, space_bytes: int, keep_s: float) -> None:
        """`space_bytes` is for the blocks of one space each (see `offload.key`), `keep_s` how long they are kept."""
        self._total_bytes = total_bytes
        self._space_bytes = space_bytes
        self._slot_s = keep_s / NUM_SLOTS
        self._slots: dict[int, Counter[bytes]] = {}
        self._used: Counter[bytes] = Counter()
        self._total = 0

    def note(self, space: bytes, num_bytes: int, at: float, now: float) -> None:
        """Count bytes that somebody stored at a time, by a clock that need not be ours."""
        self._advance(now)
        number = int(min(at, now) / self._slot_s)
        if number < self._oldest(now):
            return
        if space not in self._used and len(self._used) >= MAX_SPACES:
            space = b""
        self._slots.setdefault(number, Counter())[space] += num_bytes
        self._used[space] += num_bytes
        self._total += num_bytes

    def room(self, space: bytes, now: float) -> int | None:
        """Return how many bytes may be stored under a space, None for any number."""
        self._advance(now)
        rooms = []
        if self._total_bytes:
            rooms.append(self._total_bytes - self._total)
        if self._space_bytes:
            rooms.append(self._space_bytes - self._used[space])
        return max(0, min(rooms)) if rooms else None

    def used(self, now: float) -> dict[bytes, int]:
        """Return what counts at present, by space."""
        self._advance(now)
        return dict(self._used)

    def _advance(self, now: float) -> None:
        oldest = self._oldest(now)
        for number in [number for number in self._slots if number < oldest]:
            slot = self._slots.pop(number)
            self._used -= slot
            self._total -= slot.total()

    def _oldest(self, now: float) -> int:
        return int(now / self._slot_s) - NUM_SLOTS
