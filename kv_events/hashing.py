"""Pure. The one definition of a block's hash, for engines, router and tiers."""

import struct
from collections.abc import Sequence
from functools import lru_cache

from xxhash import xxh3_64_intdigest

from bus.messages.base import pack_u32


@lru_cache(maxsize=4096)
def salt_hash(model: str, cache_salt: str = "") -> int:
    """Return the parent of the first block: prompts share blocks only under an equal model and salt."""
    return xxh3_64_intdigest(f"{len(model)}:{model}{cache_salt}".encode("utf-8", "surrogatepass"))


def block_hashes(tokens: Sequence[int], block_size: int, root: int) -> list[int]:
    """Return the chained hash of every full block of `tokens`: xxh3_64(parent hash, token ids).

    `root` is the parent of the first block (`salt_hash`, or the hash of the block before).
    """
    return packed_block_hashes(pack_u32(tokens), block_size, root)


def packed_block_hashes(packed: bytes | memoryview, block_size: int, root: int) -> list[int]:
    """Return the hashes as `block_hashes` does, from packed token ids."""
    step = block_size * 4
    blocks = struct.iter_unpack(f"{step}s", memoryview(packed)[: len(packed) // step * step])
    return [(root := xxh3_64_intdigest(root.to_bytes(8, "little") + block)) for (block,) in blocks]
