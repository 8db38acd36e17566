"""Pure. Whether a new block is worth the one that it would displace (TinyLFU, Einziger et al. 2017).

A prompt that is seen once must not wash out prefixes that many share. How often a block was asked for or computed
lately is estimated in a count-min sketch; a block that was seen less often than the one that would have to leave is
not let in. Equals are: the newer one is the likelier to be needed.
"""

NUM_ROWS = 4
MAX_COUNT = 15
SAMPLE_FACTOR = 8
"""After so many notes for each slot, all counts are halved: what was hot long ago cools down."""
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
        """Count one use; every `SAMPLE_FACTOR` times the slots, this halves all counts."""
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

    def admits(self, newcomer: int, victim: int) -> bool:
        """Say whether the block with the hash `newcomer` may take the place of `victim`."""
        return self.estimate(newcomer) >= self.estimate(victim)


_HALVED = bytes(count // 2 for count in range(256))
