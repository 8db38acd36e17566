"""Pure. Whether a new block is worth the one that it would displace.

A prompt that is seen once must not wash out prefixes that many share: TinyLFU (Einziger et al. 2017) estimates how
often a block was used lately, and does not let in what was seen less often than the one that would have to leave. But
the second turn of a conversation needs what its first turn saw once: there the filter does harm. So two small models
of the tier, one with the filter and one without, see a sample of all uses, and the one that finds more is followed.
"""

from collections import OrderedDict

NUM_ROWS = 4
MAX_COUNT = 15
SAMPLE_FACTOR = 8
"""Notes for each slot that counts stand for: then all are halved, and what was hot long ago cools down."""
MAX_SAMPLE = 64
MIN_MODEL = 256
"""Blocks of a model, at least."""
FADE = 0.999
MIN_LEAD = 4.0
"""Blocks that the filter found and plain recency did not, beyond the opposite, of the last thousand or so."""
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
_MASK = 2**64 - 1


class Frequencies:
    """Estimates of how often hashes were noted lately: never too low but by ageing, and rarely too high.

    Takes 4 to 8 bytes for each slot of the tier that it guards.
    """

    def __init__(self, num_slots: int) -> None:
        bits = max(6, (num_slots - 1).bit_length())
        self._shift = 64 - bits
        self._rows = [bytearray(1 << bits) for _ in range(NUM_ROWS)]
        self._sample_size = SAMPLE_FACTOR * max(64, num_slots)
        self._num_notes = 0

    def note(self, block_hash: int) -> None:
        """Count one use; this halves all counts after `SAMPLE_FACTOR` for each slot, then after each half as many."""
        for row, odd in zip(self._rows, _ODD, strict=True):
            place = (block_hash * odd & _MASK) >> self._shift
            if row[place] < MAX_COUNT:
                row[place] += 1
        self._num_notes += 1
        if self._num_notes >= self._sample_size:
            self._num_notes //= 2
            self._rows = [row.translate(_HALVED) for row in self._rows]

    def estimate(self, block_hash: int) -> int:
        """Return about how often a hash was noted lately, at most `MAX_COUNT`."""
        return min([row[(block_hash * odd & _MASK) >> self._shift] for row, odd in zip(self._rows, _ODD, strict=True)])


class Admission:
    """The filter, and whether it does any good; takes some 10 bytes for each slot of the tier that it guards."""

    def __init__(self, num_slots: int) -> None:
        self._frequencies = Frequencies(num_slots)
        self._sample = max(1, min(MAX_SAMPLE, num_slots // MIN_MODEL))
        """One of so many hashes is in the models."""
        capacity = max(1, num_slots // self._sample)
        self._plain, self._filtered = _Model(capacity, None), _Model(capacity, self._frequencies)
        self._lead = 0.0

    @property
    def is_filtering(self) -> bool:
        """Say whether the filter finds more at present."""
        return self._lead > MIN_LEAD

    def note(self, block_hash: int) -> None:
        """Count one use of a block, wherever it was found."""
        self._frequencies.note(block_hash)
        if block_hash % self._sample == 0:
            found = self._filtered.use(block_hash) - self._plain.use(block_hash)
            self._lead = FADE * self._lead + found

    def admits(self, newcomer: int, victim: int) -> bool:
        """Say whether the block with the hash `newcomer` may take the place of `victim`."""
        return not self.is_filtering or self._frequencies.estimate(newcomer) >= self._frequencies.estimate(victim)


class _Model:
    """Hashes that a tier of `capacity` would hold, by recency."""

    def __init__(self, capacity: int, frequencies: Frequencies | None) -> None:
        self._capacity = capacity
        self._frequencies = frequencies
        self._held: OrderedDict[int, None] = OrderedDict()

    def use(self, block_hash: int) -> bool:
        """Say whether a block is here, and let it in if it is not."""
        if block_hash in self._held:
            self._held.move_to_end(block_hash)
            return True
        if len(self._held) >= self._capacity:
            victim, frequencies = next(iter(self._held)), self._frequencies
            if frequencies is not None and frequencies.estimate(block_hash) < frequencies.estimate(victim):
                return False
            del self._held[victim]
        self._held[block_hash] = None
        return False


_HALVED = bytes(count // 2 for count in range(256))
