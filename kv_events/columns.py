"""Pure. Arithmetic on columns of block hashes (arrays of uint64)."""

import sys
from array import array


def xor_of(blocks: "array[int]") -> int:
    """Return the xor of hashes: halves of one long integer are folded upon each other, four times as fast as a loop."""
    number, length = int.from_bytes(blocks.tobytes(), sys.byteorder), len(blocks)
    while length > 1:
        length = (length + 1) >> 1
        high = number >> 64 * length
        number ^= high << 64 * length ^ high
    return number


def common_length(ours: "array[int]", first: int, theirs: "array[int]", at: int) -> int:
    """Return how many elements from `ours[first]` and `theirs[at]` on are equal."""
    low, high = 0, min(len(ours) - first, len(theirs) - at)
    if ours[first : first + high] == theirs[at : at + high]:
        return high
    # The arrays differ in [low, high): slices are compared faster than elements.
    while high - low > 1:
        middle = (low + high) >> 1
        if ours[first + low : first + middle] == theirs[at + low : at + middle]:
            low = middle
        else:
            high = middle
    return low
