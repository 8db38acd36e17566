"""I/O (randomness). Ids of requests, 128 random bits each: the kernel is asked for many at a time."""

import os
from collections.abc import Iterator

_AT_A_TIME = 256


def make_ids() -> Iterator[str]:
    """Yield ids of 32 hexadecimal digits for ever."""
    while True:
        digits = os.urandom(16 * _AT_A_TIME).hex()
        for start in range(0, len(digits), 32):
            yield digits[start : start + 32]
