"""Pure. Numbers of attempts: 32 bits, each once in 2**32, and what a worker saw of them says nothing of the others.

Whoever speaks first of a ticket has the attempt, so a worker that could count on from its own would take others' work.
"""

import hashlib
from collections.abc import Iterator
from itertools import count

_ROUNDS = 4


def make_tickets(key: bytes) -> Iterator[int]:
    """Yield tickets for ever; `key` is 16 secret bytes.

    An index goes through a Feistel network (Luby and Rackoff, 1988: four keyed rounds are a random permutation to
    whoever has not the key), so that no number comes again before all were there.
    """
    for index in count():
        left, right = index >> 16 & 0xFFFF, index & 0xFFFF
        for number in range(_ROUNDS):
            data = bytes((number, right >> 8, right & 0xFF))
            left, right = right, left ^ int.from_bytes(hashlib.blake2s(data, digest_size=2, key=key).digest(), "big")
        yield left << 16 | right
