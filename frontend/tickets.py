"""Pure. Numbers of attempts: 32 bits, each once in 2**32, and what a worker saw of them says nothing of the others.

Whoever speaks first of a ticket has the attempt, so a worker that could count on from its own would take others' work.
"""

import hashlib
from collections.abc import Iterator
from itertools import count

_ROUNDS = 4
_TABLE_BYTES = 2 * 2**16
"""16 bits for each value of 16 bits."""


def make_tickets(key: bytes) -> Iterator[int]:
    """Yield tickets for ever; `key` is 16 secret bytes.

    An index goes through a Feistel network (Luby and Rackoff, 1988: four keyed rounds are a random permutation to
    whoever has not the key), so that no number comes again before all were there. A round is a table: half a megabyte
    for all of them, and a fifth of the time that hashing takes.
    """
    tables = memoryview(hashlib.shake_128(key).digest(_ROUNDS * _TABLE_BYTES)).cast("H")
    first, second, third, fourth = (tables[start : start + 2**16] for start in range(0, len(tables), 2**16))
    for index in count():
        left, right = index >> 16 & 0xFFFF, index & 0xFFFF
        left ^= first[right]
        right ^= second[left]
        left ^= third[right]
        right ^= fourth[left]
        yield left << 16 | right
