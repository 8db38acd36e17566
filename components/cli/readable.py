"""Pure. Messages as people read them: decoded by the catalogue, ids counted instead of listed."""

import time
from typing import Any

import msgspec

from bus.catalogue import Channel, channel_codec, channel_of
from bus.errors import Malformed
from bus.protocol import Incoming
from bus.subjects import Subjects

HASHES = frozenset({"block_hashes"})
OPAQUE = frozenset({"payload"})
"""Fields of bytes that are neither hashes (uint64) nor ids (uint32)."""
MAX_TEXT = 400
MAX_PREVIEW = 48


def to_line(at: float, incoming: Incoming, subjects: Subjects) -> str:
    """Return one line: time of day, subject, size, and the message."""
    clock = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
    shown = _show(incoming, subjects)
    text = shown if isinstance(shown, str) else _to_text(shown)
    reply = f" -> {incoming.reply}" if incoming.reply else ""
    return f"{clock} {printable(incoming.subject)}{reply} {len(incoming.payload)} B  {text}"


def to_json(at: float, incoming: Incoming, subjects: Subjects) -> str:
    """Return one JSON object: `at`, `subject`, `size`, and `message` or, when malformed, `malformed`."""
    shown = _show(incoming, subjects)
    record: dict[str, Any] = {"at": round(at, 6), "subject": incoming.subject, "size": len(incoming.payload)}
    record["malformed" if isinstance(shown, str) else "message"] = shown
    return msgspec.json.encode(record).decode("utf-8", "replace")


def printable(text: str) -> str:
    """Return text that cannot steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _show(incoming: Incoming, subjects: Subjects) -> Any:
    """Return the message as builtins, or a string that says why there is none."""
    channel = channel_of(incoming.subject, subjects)
    if not incoming.payload:
        return {}
    try:
        if channel is not None and channel.messages:
            message = channel_codec(channel.messages).decode_any(incoming.payload)
            return {"type": type(message).__name__} | _fields(message, channel)
        return msgspec.json.decode(incoming.payload)
    except (Malformed, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        kind = "malformed" if channel is not None and channel.messages else "no JSON"
        return f"{kind}: {error}: {incoming.payload[:MAX_PREVIEW]!r}"


def _fields(message: msgspec.Struct, channel: Channel) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    return {
        name: _readable(name, getattr(message, name), channel)
        for name in message.__struct_fields__
        if not _is_default(message, name)
    }


def _is_default(message: msgspec.Struct, name: str) -> bool:
    field = next(f for f in msgspec.structs.fields(message) if f.name == name)
    value = getattr(message, name)
    if field.default is not msgspec.NODEFAULT:
        return bool(value == field.default)
    return field.default_factory is not msgspec.NODEFAULT and not value


def _readable(name: str, value: Any, channel: Channel) -> Any:
    if isinstance(value, msgspec.Raw):
        return _part(bytes(value), channel)
    if isinstance(value, bytes):
        if name in OPAQUE:
            return f"bytes[{len(value)}]"
        return f"u64[{len(value) // 8}]" if name in HASHES else f"u32[{len(value) // 4}]"
    if isinstance(value, msgspec.Struct):
        return _fields(value, channel)
    if isinstance(value, list):
        return [_readable(name, item, channel) for item in value]
    return value


def _part(data: bytes, channel: Channel) -> Any:
    try:
        part = channel_codec(channel.parts).decode(data)
    except Malformed as error:
        return f"malformed: {error}"
    return {"type": type(part).__name__} | _fields(part, channel)


def _to_text(value: Any) -> str:
    """Write builtins compactly; a type stands before its fields."""
    if isinstance(value, dict):
        inner = " ".join(f"{printable(str(key))}={_to_text(item)}" for key, item in value.items() if key != "type")
        return f"{printable(str(value['type']))} {inner}".strip() if "type" in value else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(_to_text(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.3f}"
    text = printable(str(value))
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"
