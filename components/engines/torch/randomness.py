"""Pure. Random numbers by counter: the number at an offset depends on (seed, offset) and on nothing drawn before.

That is why a sequence can move to another worker, or be computed in another batch, and go on with the same tokens.
"""

from collections.abc import Sequence

import numpy as np

Uint64s = np.ndarray[tuple[int], np.dtype[np.uint64]]


def uniforms(seeds: Sequence[int], offsets: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return one number in [0, 1) with 24 random bits for each pair of seed and output offset."""
    mixed = _mix(_mix(np.array(seeds, dtype=np.uint64)) ^ np.array(offsets, dtype=np.uint64))
    return (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mix(x: Uint64s) -> Uint64s:
    """Apply one step of SplitMix64 (Steele, Lea, Flood 2014), in which every bit of input flips half of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
