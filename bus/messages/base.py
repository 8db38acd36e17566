"""Pure. The two bases of every message, and token ids as bytes."""

import sys
from array import array
from collections.abc import Iterable

import msgspec

from bus.errors import Malformed


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """A fact or a command: a msgpack map, tagged with its type, open to new fields."""


class Hot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message of the per-token path: a positional array, extended only at its end."""


def pack_u32(values: Iterable[int]) -> bytes:
    """Pack ids below 2**32 as little-endian uint32."""
    packed = array("I", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_u32(data: bytes) -> "array[int]":
    """Unpack little-endian uint32 ids; raise `Malformed` when the length is no multiple of four."""
    return _unpack("I", data)


def pack_u64(values: Iterable[int]) -> bytes:
    """Pack block hashes as little-endian uint64."""
    packed = array("Q", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_u64(data: bytes) -> "array[int]":
    """Unpack little-endian uint64 block hashes; raise `Malformed` on a broken length."""
    return _unpack("Q", data)


def _unpack(typecode: str, data: bytes) -> "array[int]":
    values = array(typecode)
    if len(data) % values.itemsize:
        raise Malformed(f"{len(data)} bytes are no whole number of {values.itemsize}-byte values")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
