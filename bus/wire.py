"""Pure. The NATS protocol as bytes: commands, subject rules, header blocks, a delivery's reply subject."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from bus.errors import Malformed

PING = b"PING\r\n"
PONG = b"PONG\r\n"
DONE = b"+ACK"

STATUS = "Status"
DESCRIPTION = "Description"
"""Where the inline status of a header block is found after parsing, as in `Status: 503`."""

NO_RESPONDERS = "503"
TTL = "Nats-TTL"
"""Header of a stored message: the stream forgets it after so many seconds."""
CREATE_CONSUMER = "$JS.API.CONSUMER.CREATE."
"""Before stream, name and filter of a consumer: the one kind of subject that holds wildcards and is published to."""

MAX_SUBJECT_BYTES = 1024
LARGE_BYTES = 64 * 1024
"""Payloads from here on are sent as a piece of their own instead of being copied into the command."""

_SUBJECT = re.compile(r"[^\s\x00-\x1f\x7f.*>]+(?:\.[^\s\x00-\x1f\x7f.*>]+)*\Z")
_FILTER = re.compile(r"(?:[^\s\x00-\x1f\x7f.*>]+|\*)(?:\.(?:[^\s\x00-\x1f\x7f.*>]+|\*))*(?:\.>)?\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VERSION_LINE = b"NATS/1.0"


@lru_cache(maxsize=1024)
def check_subject(subject: str) -> str:
    """As `check_reply`, for a subject that comes again: it is remembered."""
    return check_reply(subject)


def check_reply(subject: str) -> str:
    """Return a subject that may be published to; raise `Malformed` for wildcards, spaces, line breaks, empty tokens."""
    if len(subject) > MAX_SUBJECT_BYTES or not _SUBJECT.match(subject) or not subject.isprintable():
        raise Malformed(f"{subject[:80]!r} is no subject to publish to")
    return subject


def check_filter(subject: str) -> str:
    """Return a subject filter (`*` and a last `>` allowed); raise `Malformed` for anything else."""
    fits = subject == ">" or _FILTER.match(subject)
    if len(subject) > MAX_SUBJECT_BYTES or not fits or not subject.isprintable():
        raise Malformed(f"{subject[:80]!r} is no subject filter")
    return subject


def check_request(subject: str) -> str:
    """Return a subject that a request may go to; raise `Malformed`."""
    return check_filter(subject) if subject.startswith(CREATE_CONSUMER) else check_subject(subject)


def check_queue(queue: str) -> str:
    """Return a queue group name, or the empty one; raise `Malformed`."""
    return check_subject(queue) if queue else queue


def pub(subject: str, reply: str, payload: bytes) -> bytes:
    """Build the head of a message without headers; `subject` and `reply` were checked."""
    return f"PUB {subject} {reply} {len(payload)}\r\n".encode()


def hpub(subject: str, reply: str, headers: Mapping[str, str], payload: bytes) -> bytes:
    """Build the head of a message with headers; raise `Malformed` for keys or values that would break the block."""
    block = header_block(headers)
    return f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n".encode() + block


class Ack(bytes):
    """A command that decides the fate of one delivery: it means nothing to a server that did not make the delivery."""


def ack(reply: str, verb: bytes) -> Ack:
    """Build the answer to a delivery, whole."""
    return Ack(f"PUB {reply}  {len(verb)}\r\n".encode() + verb + b"\r\n")


def header_block(headers: Mapping[str, str]) -> bytes:
    """Encode headers, version line and closing line included."""
    block = "NATS/1.0\r\n"
    for key, value in headers.items():
        if not _is_header_name(key):
            raise Malformed(f"{key[:80]!r} is no header name")
        if "\r" in value or "\n" in value:
            raise Malformed(f"header {key}: a value is one line")
        block += f"{key}: {value}\r\n"
    return f"{block}\r\n".encode("utf-8", "replace")


@lru_cache(maxsize=256)
def _is_header_name(key: str) -> bool:
    return _HEADER_NAME.match(key) is not None


def parse_headers(block: bytes) -> dict[str, str]:
    """Decode a header block, its inline status as `Status` and `Description`; raise `Malformed`.

    Bytes that are no UTF-8 become U+FFFD in values; a name must be a token. Of repeated names the last one counts.
    """
    first, _, rest = block.partition(b"\r\n")
    if not first.startswith(_VERSION_LINE) or not block.endswith(b"\r\n\r\n"):
        raise Malformed(f"no header block: {block[:40]!r}")
    headers: dict[str, str] = {}
    status = first[len(_VERSION_LINE) :].strip()
    if status:
        if len(status) < 3 or not status[:3].isdigit() or status[3:4] not in (b"", b" "):
            raise Malformed(f"no status: {first[:40]!r}")
        headers[STATUS] = status[:3].decode("ascii")
        if status[4:]:
            headers[DESCRIPTION] = status[4:].decode("utf-8", "replace")
    for line in rest.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        key = name.decode("ascii", "replace")
        if not colon or not _is_header_name(key):
            raise Malformed(f"no header line: {line[:40]!r}")
        headers[key] = value.strip().decode("utf-8", "replace")
    return headers


class DeliveryPosition(NamedTuple):
    """What the reply subject of a stream's delivery tells."""

    num_delivered: int
    stream_seq: int
    consumer_seq: int
    pending: int
    """Messages that this consumer has yet to deliver."""


def parse_position(reply: str) -> DeliveryPosition:
    """Parse `$JS.ACK...` (with or without domain and account); raise `Malformed` when it is none."""
    tokens = reply.split(".")
    start = 4 if len(tokens) == 9 else 6
    if len(tokens) < 9 or len(tokens) == 10 or tokens[:2] != ["$JS", "ACK"]:
        raise Malformed(f"{reply[:80]!r} is no reply subject of a stream")
    delivered, stream_seq, consumer_seq, _, pending = tokens[start : start + 5]
    try:
        return DeliveryPosition(int(delivered), int(stream_seq), int(consumer_seq), int(pending))
    except ValueError as error:
        raise Malformed(f"{reply[:80]!r} is no reply subject of a stream") from error
