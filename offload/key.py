"""Pure. What a stored block is called, and the frame in which its bytes travel: header, checksum, payload.

A frame is one contiguous piece of memory: `HEADER_BYTES` of header, then the block's bytes as the engine has them.
A frame whose first byte is `UNSEALED` has no header yet.
"""

import struct
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, NewType

from xxhash import xxh3_64_intdigest

Space = NewType("Space", bytes)
"""16 bytes that stand for a fingerprint and a cache salt: blocks of different spaces never meet."""

SPACE_BYTES = 16
HEADER_BYTES = 64
MAGIC = b"busway\r\n"
UNSEALED = 0
VERSION = 1

_HEADER = struct.Struct("<8sHHI16sQQQ")
_CHECKSUM = struct.Struct("<Q")
_CHECKED_BYTES = _HEADER.size
assert _CHECKED_BYTES + _CHECKSUM.size == HEADER_BYTES


class BlockKey(NamedTuple):
    """The name of a block in every tier and on every worker: what is under it never changes."""

    space: Space
    block_hash: int


class Header(NamedTuple):
    """What a frame says of itself."""

    key: BlockKey
    parent_hash: int
    """Hash of the block before; 0 at the start of a prompt."""
    payload_bytes: int


@lru_cache(maxsize=4096)
def space_of(fingerprint: str, cache_salt: str = "") -> Space:
    """Return the space of blocks that an engine of this fingerprint computed under this salt.

    The fingerprint names everything that a block's bytes depend on but its tokens: model, dtype, layout, block size,
    tensor parallelism. The digest is cryptographic: nobody can choose a salt that leads into another tenant's space,
    nor read a salt from the name of an object.
    """
    digest = blake2b(digest_size=SPACE_BYTES, person=b"busway-space-v1")
    for part in (fingerprint, cache_salt):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return Space(digest.digest())


def object_name(key: BlockKey) -> str:
    """Return the name of a block in stores that name by strings: `<space>/<block hash>`, both in hex."""
    return f"{key.space.hex()}/{key.block_hash:016x}"


def parse_object_name(name: str) -> BlockKey | None:
    """Return the key of which this is the `object_name`, None for anything else."""
    space, slash, block_hash = name.partition("/")
    try:
        key = BlockKey(Space(bytes.fromhex(space)), int(block_hash, 16))
    except ValueError:
        return None
    return key if slash and object_name(key) == name else None


def frame_bytes(payload_bytes: int) -> int:
    """Return the size of the frame of a block of `payload_bytes`."""
    return HEADER_BYTES + payload_bytes


def seal(frame: memoryview, key: BlockKey, parent_hash: int) -> None:
    """Write the header of a frame whose payload is in place, all of it at once; takes one pass over the payload."""
    payload_bytes = len(frame) - HEADER_BYTES
    header = _HEADER.pack(MAGIC, VERSION, HEADER_BYTES, 0, key.space, key.block_hash, parent_hash, payload_bytes)
    frame[:HEADER_BYTES] = header + _CHECKSUM.pack(_checksum(header, frame))


def read_header(data: bytes | memoryview) -> Header | None:
    """Return what the first bytes of a frame say, None for what is no header of this version; checks no payload."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, size, _, space, block_hash, parent_hash, payload_bytes = _HEADER.unpack_from(data)
    if (magic, version, size) != (MAGIC, VERSION, HEADER_BYTES):
        return None
    return Header(BlockKey(Space(space), block_hash), parent_hash, payload_bytes)


def is_sound(frame: memoryview, key: BlockKey) -> bool:
    """Say whether a frame is whole and holds the block of this key: name, length, version and checksum."""
    header = read_header(frame)
    if header is None or header.key != key or header.payload_bytes != len(frame) - HEADER_BYTES:
        return False
    return _CHECKSUM.unpack_from(frame, _CHECKED_BYTES) == (_checksum(frame[:_CHECKED_BYTES], frame),)


def _checksum(header: bytes | memoryview, frame: memoryview) -> int:
    """Return a checksum over the payload that starts from the one over the header's fields."""
    return xxh3_64_intdigest(frame[HEADER_BYTES:], seed=xxh3_64_intdigest(header))
