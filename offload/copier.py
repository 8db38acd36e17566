"""I/O (memory). How blocks get from an engine's memory into host memory and back: by memcpy, or as a device copies."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

INLINE_BYTES = 2**20
"""Up to this size, of some 0.1 ms, blocks are copied and checked in the event loop: a thread takes longer to begin."""


class Payloads(NamedTuple):
    """The places of blocks in host memory: that of slot i begins `first + i * stride` bytes behind the start."""

    buffer: memoryview
    """All of host memory, a whole number of strides."""
    address: int
    """Where the buffer starts."""
    first: int
    stride: int
    block_bytes: int


class Copier(Protocol):
    """Copies whole blocks between slots and addresses in an engine's memory. Several threads may call it at a time.

    The engine is through with the blocks before a call, and nobody touches them during one. When a call returns,
    all bytes are in place and none arrives any more, whoever looks at them: this CPU, the engine, other devices.
    Raises `EngineDied` when the engine's memory cannot be reached any more.
    """

    @property
    def inline_bytes(self) -> int:
        """Up to this size copies may be made in the event loop; 0: each of them waits for a device."""

    def read_in(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """Copy blocks at these addresses into slots."""

    def write_out(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """Copy the blocks in slots to these addresses."""


class MemoryCopier:
    """Implements `Copier` for engines whose blocks are in this process's own memory."""

    inline_bytes = INLINE_BYTES

    def __init__(self, payloads: Payloads) -> None:
        self._first = payloads.address + payloads.first
        self._stride = payloads.stride
        self._block_bytes = payloads.block_bytes

    def read_in(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """See `Copier`; other threads run meanwhile."""
        for slot, address in zip(slots, addresses, strict=True):
            ctypes.memmove(self._first + slot * self._stride, address, self._block_bytes)

    def write_out(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """See `Copier`; other threads run meanwhile."""
        for slot, address in zip(slots, addresses, strict=True):
            ctypes.memmove(address, self._first + slot * self._stride, self._block_bytes)
