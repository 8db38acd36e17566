"""Pure. NATS's keys (nkeys): Ed25519 pairs whose text says what they are for. Imported only where keys are used.

The encoding (https://docs.nats.io/reference/reference-protocols/nkey) is base 32 of a prefix, 32 bytes and a CRC-16.
"""

import base64
import binascii
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bus.errors import BadConfig

_SEED = 18 << 3
_RAW_BYTES = 32
_MAX_TEXT = 128


class Kind(IntEnum):
    """What a key is for: the byte that its public text begins with."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3


class KeyPair:
    """A key that signs; `public` may be told to anybody, `seed` to nobody."""

    def __init__(self, kind: Kind, raw: bytes) -> None:
        self.kind = kind
        self._raw = raw
        self._private = Ed25519PrivateKey.from_private_bytes(raw)
        public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = _encode(bytes([kind]), public)

    @property
    def seed(self) -> str:
        return _encode(bytes([_SEED | self.kind >> 5, (self.kind & 31) << 3]), self._raw)

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._private.sign(data)

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


def new_pair(kind: Kind) -> KeyPair:
    """Return a new random key."""
    return KeyPair(kind, Ed25519PrivateKey.generate().private_bytes_raw())


def read_seed(text: str) -> KeyPair:
    """Return the key of a seed; raise `BadConfig`, which never repeats the seed."""
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError("too long")
        data = base64.b32decode(text + "=" * (-len(text) % 8))
        prefix, raw, checksum = data[:2], data[2:-2], data[-2:]
        if _checksum(data[:-2]) != checksum or len(raw) != _RAW_BYTES or prefix[0] & 0b11111000 != _SEED:
            raise ValueError("damaged")
        return KeyPair(Kind((prefix[0] & 7) << 5 | prefix[1] >> 3), raw)
    except (ValueError, binascii.Error) as error:
        raise BadConfig(f"a seed of {len(text)} characters is no seed of a NATS key") from error


def _encode(prefix: bytes, raw: bytes) -> str:
    data = prefix + raw
    return base64.b32encode(data + _checksum(data)).decode("ascii").rstrip("=")


def _checksum(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")
