"""Pure. Bytes to messages and back: msgpack on the wire, JSON where a person or another program writes."""

from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

from bus.errors import Malformed

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""Encode any message as msgpack."""

_WRONG = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class Codec(Generic[T]):
    """Typed decoder of one message type, made once per type at module level."""

    def __init__(self, message_type: Any) -> None:
        self._msgpack = msgspec.msgpack.Decoder(message_type)
        self._json = msgspec.json.Decoder(message_type)

    def decode(self, data: bytes | memoryview) -> T:
        """Decode msgpack; raise `Malformed` for whatever the bytes may be instead."""
        try:
            message: T = self._msgpack.decode(data)
        except _WRONG as error:
            raise Malformed(f"not a valid message: {error}") from error
        return message

    def decode_json(self, data: bytes | memoryview | str) -> T:
        """Decode JSON; raise `Malformed` for whatever the bytes may be instead."""
        try:
            message: T = self._json.decode(data)
        except _WRONG as error:
            raise Malformed(f"not a valid JSON message: {error}") from error
        return message

    def decode_any(self, data: bytes) -> T:
        """Decode JSON when the first character says so (a map in msgpack never starts so), else msgpack."""
        return self.decode_json(data) if data.lstrip()[:1] in (b"{", b"[") else self.decode(data)


@cache
def codec(message_type: type[T]) -> Codec[T]:
    """Return the codec of `message_type`, made at the first call."""
    return Codec[T](message_type)
