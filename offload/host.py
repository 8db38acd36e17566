"""I/O (memory). The tier in host RAM: one arena of frames, in which the engine's bytes and those of all tiers meet."""

import ctypes
import mmap
from collections.abc import Sequence

from bus.errors import BadConfig
from offload.copier import Copier, MemoryCopier, Payloads
from offload.key import HEADER_BYTES, UNSEALED, frame_bytes
from offload.slots import Slots
from offload.tier import PAGE_BYTES, Frame

MIN_SLOTS = 16


class HostArena:
    """Memory for whole frames, page-aligned, and the books over it.

    Pages are taken from the system when first used, unless a copier for a GPU page-locks them all.
    """

    def __init__(self, num_bytes: int, block_bytes: int, *, policy: str = "lru") -> None:
        """Raise `BadConfig` when there is no room for `MIN_SLOTS` blocks, or the system has not so much memory."""
        self.block_bytes = block_bytes
        self._stride = stride_bytes(block_bytes)
        num_slots = num_bytes // self._stride
        if num_slots < MIN_SLOTS:
            raise BadConfig(
                f"offload.host_bytes = {num_bytes} holds {num_slots} blocks of {self._stride} bytes: "
                f"give at least {MIN_SLOTS * self._stride}"
            )
        self.slots = Slots(num_slots, policy=policy, medium="host")
        try:
            self._memory = mmap.mmap(-1, num_slots * self._stride, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise BadConfig(f"no memory for offload.host_bytes = {num_bytes}: {error}; set less") from error
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.copier: Copier = MemoryCopier(self.payloads)
        """How blocks come and go: another one, before the first does, where an engine has them on a device."""

    def frame(self, slot: int) -> Frame:
        """Return the frame in a slot that is filled or being filled."""
        start = slot * self._stride
        pages = self._view[start : start + self._stride]
        view = pages[: frame_bytes(self.block_bytes)]
        return Frame(self.slots.key_at(slot), self.slots.parent_at(slot), view, pages)

    @property
    def address(self) -> int:
        """Where slot 0 begins; slot i begins `i * stride_bytes(block_bytes)` bytes behind it."""
        return self._address

    @property
    def buffer(self) -> memoryview:
        """All bytes."""
        return self._view

    @property
    def payloads(self) -> Payloads:
        """Where the bytes of blocks are."""
        return Payloads(self._view, self._address, HEADER_BYTES, self._stride, self.block_bytes)

    def read_in(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """Copy an engine's blocks at these addresses into slots; other threads run meanwhile."""
        for slot in slots:
            self._view[slot * self._stride] = UNSEALED
        self.copier.read_in(slots, addresses)

    def write_out(self, slots: Sequence[int], addresses: Sequence[int]) -> None:
        """Copy the blocks in slots to these addresses of an engine; other threads run meanwhile."""
        self.copier.write_out(slots, addresses)


def stride_bytes(block_bytes: int) -> int:
    """Return the size of a frame in whole pages."""
    return -(-frame_bytes(block_bytes) // PAGE_BYTES) * PAGE_BYTES
