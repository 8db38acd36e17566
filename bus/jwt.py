"""Pure. NATS's tokens: claims signed by an nkey, as nats-server reads them (JWT version 2)."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from bus.errors import BadConfig
from bus.nkeys import KeyPair

_HEADER = b'{"typ":"JWT","alg":"ed25519-nkey"}'
MAX_TOKEN_BYTES = 64 * 1024


class _UserClaims(msgspec.Struct):
    type: str = ""
    tags: list[str] = []


class Claims(msgspec.Struct):
    """What is read of a token; nothing of it was verified, which is the server's part."""

    name: str = ""
    sub: str = ""
    exp: int = 0
    """Unix seconds; 0: never."""
    nats: _UserClaims = msgspec.field(default_factory=_UserClaims)


_claims = msgspec.json.Decoder(Claims)


def sign_claims(
    kind: str, name: str, subject: str, body: Mapping[str, Any], issuer: KeyPair, *, issued_at: int, expires_at: int = 0
) -> str:
    """Return a token of `kind` (`operator`, `account`, `user`) about the key `subject`; times in unix seconds."""
    claims: dict[str, Any] = {
        "iat": issued_at,
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": {**body, "type": kind, "version": 2},
    }
    if expires_at:
        claims["exp"] = expires_at
    claims["jti"] = base64.b32encode(hashlib.sha256(msgspec.json.encode(claims)).digest()).decode("ascii").rstrip("=")
    signed = _base64(_HEADER) + b"." + _base64(msgspec.json.encode(claims))
    return (signed + b"." + _base64(issuer.sign(signed))).decode("ascii")


def read_claims(token: str) -> Claims:
    """Return what a token says; raise `BadConfig` for what is none."""
    try:
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError("too long")
        _, payload, _ = token.split(".")
        return _claims.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise BadConfig("the credentials hold no token of NATS: make them again with `busway keys bus`") from error


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
