"""Pure. KV blocks that come into an engine from elsewhere or go elsewhere: what engine and mover tell each other."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from offload.copier import Copier, Payloads

OpenCopier = Callable[[Payloads], AbstractAsyncContextManager[Copier]]
"""Opens what copies an engine's blocks into host memory and back; may take seconds."""


class Fill(msgspec.Struct, frozen=True, gc=False):
    """A sequence waits for blocks that somebody said to have (`EngineRequest.fill_blocks`).

    Its first `start` full blocks are here already; `blocks[i]` is the place for the block with `hashes[i]`. They stay
    its own until the answer `Engine.filled`, which is due in any case where there are blocks.
    """

    key: int
    start: int
    blocks: list[int]
    hashes: list[int]


class Held(msgspec.Struct, frozen=True, gc=False):
    """More blocks of a sequence with `EngineRequest.hold`: computed, full, and kept until `Engine.release`."""

    key: int
    start: int
    """Blocks that were told before."""
    blocks: list[int]
    hashes: list[int]
    is_last: bool
    """The sequence ended. This note comes before the step that says so, also when it names no blocks."""


class Pinned(msgspec.Struct, frozen=True, gc=False):
    """The answer to `Engine.pin`: where the first of the hashes are, kept until `Engine.unpin`; none known: empty."""

    token: int
    blocks: list[int]


Note = Fill | Held | Pinned


class BlockMemory(msgspec.Struct, frozen=True, eq=False):
    """Where an engine keeps its KV blocks: block i is the row of `block_bytes` bytes at `address + i * block_bytes`."""

    address: int
    block_bytes: int
    num_blocks: int
    device: str
    """"cpu" or "cuda:0"."""
    fingerprint: str
    """Equal where a block means the same: model and weights, dtype, layout, block size, tensor parallel degree."""
    buffer: memoryview | None
    """All bytes, writable, where they can be reached without a device."""
    open_copier: OpenCopier | None = None
    """How to copy blocks where that takes a device."""

    def row(self, block: int) -> memoryview:
        """Return the bytes of one block; only where there is a `buffer`."""
        assert self.buffer is not None
        return self.buffer[block * self.block_bytes : (block + 1) * self.block_bytes]


def ignore_note(note: Note) -> None:
    """Take no note: for those who ask for no fill, hold or pin."""
