"""Pure. The mock engine's KV blocks: real bytes that follow from a block's hash, so that a wrong block is noticed."""

import ctypes
import mmap

from bus.config import MockConfig
from components.engines.batching.pool import BlockPool
from components.engines.batching.scheduler import Scheduler
from components.engines.batching.sequence import Sequence
from components.engines.exchange import BlockMemory

REPEATS = 32
BLOCK_BYTES = 8 * REPEATS


def mock_content(block_hash: int) -> bytes:
    """Return what a block with that hash holds."""
    return block_hash.to_bytes(8, "little") * REPEATS


def mock_memory(model: str, config: MockConfig) -> BlockMemory:
    """Return memory for all blocks; the system provides pages when they are touched."""
    pages = mmap.mmap(-1, config.num_blocks * BLOCK_BYTES)
    return BlockMemory(
        address=ctypes.addressof(ctypes.c_char.from_buffer(pages)),
        block_bytes=BLOCK_BYTES,
        num_blocks=config.num_blocks,
        device="cpu",
        fingerprint=f"mock1-{config.block_size}-{model}",
        buffer=memoryview(pages),
    )


class MemoryScheduler(Scheduler):
    """Writes what a step would compute when it is scheduled, and looks at what it did not compute itself."""

    def __init__(
        self, pool: BlockPool, memory: BlockMemory, *, block_size: int, max_running: int, max_batch_tokens: int
    ) -> None:
        super().__init__(pool, block_size=block_size, max_running=max_running, max_batch_tokens=max_batch_tokens)
        self._memory = memory

    def find_fault(self, sequence: Sequence) -> int:
        """Return 0 if what `sequence` found or was filled with is right, else a number that spoils its tokens."""
        hashes = sequence.hashes(sequence.cached_tokens // self._block_size, self._block_size)
        for block, block_hash in zip(sequence.blocks, hashes, strict=False):
            if self._memory.row(block) != mock_content(block_hash):
                return block_hash or 1
        return 0

    def _store_full(self, sequence: Sequence, num_tokens: int) -> None:
        first = sequence.num_stored
        super()._store_full(sequence, num_tokens)
        if sequence.num_stored > first:
            hashes = sequence.hashes(sequence.num_stored, self._block_size)
            for index in range(first, sequence.num_stored):
                self._memory.row(sequence.blocks[index])[:] = mock_content(hashes[index])
