"""Pure. How API keys are made, recognized and kept in files. Only their digests are stored anywhere."""

import hashlib
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from bus.errors import BadConfig
from bus.messages.keys import ApiKey

BUCKET = "KEYS"
PREFIX = "sk-busway-"
"""Keys begin with it, so that scanners for secrets recognize them."""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`frontend.keys` as a JSON file."""

    keys: dict[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")], ApiKey]
    """By digest."""


def new_key() -> str:
    """Return a new key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: bytes) -> str:
    """Return what a key is kept under. It has no salt and is fast: what is hashed cannot be guessed."""
    return hashlib.sha256(key).hexdigest()


def decode_key_file(data: bytes, path: Path) -> dict[str, ApiKey]:
    """Return the keys of a file by digest; raise `BadConfig` for what is no such file."""
    try:
        return dict(_decoder.decode(data).keys)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is no file of keys: {error}") from error


_decoder = msgspec.json.Decoder(KeyFile)
