"""Pure. What is written down about the slots of a disk tier, so that a restarted worker finds what is there.

One entry of `ENTRY_BYTES` a slot, written after the frame, behind one entry for the file itself. An entry proves
nothing: a crash between frame and entry, or one that tears either, leaves an entry for a frame that is not (any more)
what it says, and that is found out by the frame's own checksum when it is loaded.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from offload.key import VERSION, BlockKey, Space
from offload.tier import Retention

ENTRY_BYTES = 64
_MAGIC = b"busway-slots-v1\n"
_ENTRY = struct.Struct("<16sQQdqQ")
_SUPER = struct.Struct("<16s16sQQII")
_CHECK = struct.Struct("<Q")
assert _ENTRY.size == _SUPER.size == ENTRY_BYTES - _CHECK.size


class Entry(NamedTuple):
    key: BlockKey
    parent_hash: int
    retention: Retention
    order: int
    """Of storing: what has a higher one came later."""


def write_superblock(space: Space, num_slots: int, stride: int) -> bytes:
    """Return the first entry of a journal. `space` is that of the fingerprint without salt."""
    return _checked(_SUPER.pack(_MAGIC, space, num_slots, stride, VERSION, 0))


def write_entry(entry: Entry) -> bytes:
    """Return the bytes of an entry."""
    key, retention = entry.key, entry.retention
    fields = (entry.parent_hash, retention.pinned_until, retention.priority, entry.order)
    return _checked(_ENTRY.pack(key.space, key.block_hash, *fields))


def read_entries(journal: bytes) -> Iterator[tuple[int, Entry]]:
    """Yield slot and entry of what can be read in a journal whose superblock is right; the rest is as if empty."""
    view = memoryview(journal)
    for slot in range(len(journal) // ENTRY_BYTES - 1):
        data = view[(slot + 1) * ENTRY_BYTES : (slot + 2) * ENTRY_BYTES]
        if _is_whole(data):
            space, block_hash, parent_hash, pinned_until, priority, order = _ENTRY.unpack_from(data)
            if -100 <= priority <= 100:
                yield (
                    slot,
                    Entry(BlockKey(Space(space), block_hash), parent_hash, Retention(priority, pinned_until), order),
                )


def _checked(data: bytes) -> bytes:
    return data + _checksum(data)


def _is_whole(data: memoryview) -> bool:
    return data[-_CHECK.size :] == _checksum(data[: -_CHECK.size])


def _checksum(data: bytes | memoryview) -> bytes:
    return _CHECK.pack(xxh3_64_intdigest(data, seed=ENTRY_BYTES))
