"""Pure. The last step batches to one frontend, for when some were lost on the way."""

from collections import deque
from collections.abc import Iterator

MAX_BATCHES = 256
MAX_BYTES = 256 * 2**10
"""What is older is forgotten: whoever misses it asks another worker to go on instead."""


class Sent:
    """Encoded batches with the numbers that they were sent under, without a gap, the oldest first."""

    __slots__ = ("_num_bytes", "_payloads", "next_seq")

    def __init__(self) -> None:
        self._payloads: deque[bytes] = deque()
        self._num_bytes = 0
        self.next_seq = 0

    def add(self, payload: bytes) -> None:
        """Keep batch number `next_seq`."""
        payloads = self._payloads
        payloads.append(payload)
        self.next_seq += 1
        self._num_bytes += len(payload)
        while len(payloads) > MAX_BATCHES or self._num_bytes > MAX_BYTES:
            self._num_bytes -= len(payloads.popleft())

    def since(self, seq: int) -> Iterator[bytes]:
        """Return the batches from number `seq` on; none if the first of them is forgotten."""
        first = self.next_seq - len(self._payloads)
        if seq < first:
            return iter(())
        return iter(list(self._payloads)[seq - first :])
