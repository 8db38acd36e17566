"""I/O. The JetStream API over a link: JSON requests, their errors as ours."""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from bus import wire
from bus.errors import (
    BusUnavailable,
    BuswayError,
    Conflict,
    Malformed,
    NoJetStream,
    NoResponder,
    QueueFull,
    StreamMismatch,
)
from bus.link import Link, is_unheard
from bus.protocol import AppendAck, Incoming, OnAppended

T = TypeVar("T")

API_TIMEOUT_S = 5.0
ASK_AGAIN_S = 1.0
NOBODY_S = 0.05
"""Between two questions to a stream that is not there yet."""

_CREATE = wire.CREATE_CONSUMER.removeprefix("$JS.API.")

STREAM_NOT_FOUND = 10059
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_FULL = frozenset({10077, 10047, 10023, 10028})
"""Stream limits (messages, bytes, per subject), and the memory, storage or resources of the server."""
_REFUSED = frozenset({10012, 10100, 10136, 10148, 10058, 10052, 10065, 10138, 10074})
"""Consumer or stream exists and differs, overlaps another one, or is not possible (copies without a cluster)."""
_TOO_LARGE = frozenset({10054})


class ApiError(msgspec.Struct, frozen=True):
    code: int
    err_code: int = 0
    description: str = ""


class _Reply(msgspec.Struct, frozen=True):
    error: ApiError | None = None


class StreamReply(_Reply, frozen=True):
    config: dict[str, Any] = {}


class ConsumerReply(_Reply, frozen=True):
    name: str = ""
    num_pending: int = 0


class Stored(msgspec.Struct, frozen=True):
    """One message of a stream."""

    seq: int
    payload: bytes


class _PubReply(_Reply, frozen=True):
    seq: int = 0
    duplicate: bool = False


_pub_reply = msgspec.json.Decoder(_PubReply)


class JetStream:
    """Typed calls; each raises `BusUnavailable` when the server does not answer, and the error that fits its reply."""

    def __init__(self, link: Link) -> None:
        self.link = link

    async def find_stream(self, name: str) -> Mapping[str, Any] | None:
        """Return the settings of a stream, or None when there is none."""
        reply = await self._call(f"STREAM.INFO.{name}", b"", StreamReply)
        if reply.error is not None:
            if reply.error.err_code == STREAM_NOT_FOUND:
                return None
            raise to_error(f"stream {name}", reply.error)
        return reply.config

    async def read(self, subject: str, body: bytes) -> Incoming:
        """Ask a stream for one of its messages; wait for one that is made, or has lost its leader, just now."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + API_TIMEOUT_S
        while True:
            try:
                return await self._ask(f"$JS.API.DIRECT.GET.{subject}", body)
            except NoResponder:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(NOBODY_S)

    async def read_next(self, stream: str, filter_subject: str, seq: int) -> Stored | None:
        """Return the first message under a filter from number `seq` on, None when there is none."""
        body = msgspec.json.encode({"seq": seq, "next_by_subj": filter_subject})
        incoming = await self.read(stream, body)
        headers = incoming.headers or {}
        number = headers.get("Nats-Sequence", "")
        if number.isdigit():
            return Stored(int(number), incoming.payload)
        if headers.get(wire.STATUS) == "404":
            return None
        raise BusUnavailable(f"stream {stream}: {headers.get(wire.STATUS, '')} {headers.get(wire.DESCRIPTION, '')}")

    async def create_stream(self, settings: Mapping[str, Any]) -> ApiError | None:
        """Create; return what the server says against it."""
        return (await self._call(f"STREAM.CREATE.{settings['name']}", msgspec.json.encode(settings), _Reply)).error

    async def update_stream(self, settings: Mapping[str, Any]) -> ApiError | None:
        """Change the settings; return what the server says against it."""
        return (await self._call(f"STREAM.UPDATE.{settings['name']}", msgspec.json.encode(settings), _Reply)).error

    async def create_consumer(self, stream: str, name: str, config: Mapping[str, Any]) -> ConsumerReply:
        """Create a consumer with one filter, or update the one that is there.

        The filter is told in the subject, too: there the server can say who may read what.
        """
        body = msgspec.json.encode({"stream_name": stream, "config": config})
        reply = await self._call(f"{_CREATE}{stream}.{name}.{config['filter_subject']}", body, ConsumerReply)
        if reply.error is not None:
            raise to_error(f"consumer {name} of stream {stream}", reply.error)
        return reply

    def forget_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer that nobody waits for; if this gets lost, its inactivity ends it."""
        try:
            self.link.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")
        except BusUnavailable:
            return

    async def append(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float
    ) -> AppendAck:
        """Publish into the stream of the subject and wait for its acknowledgement."""
        ack = _to_ack(subject, await self.link.request(subject, payload, timeout_s=timeout_s, headers=headers))
        if isinstance(ack, BuswayError):
            raise ack
        return ack

    def append_soon(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        on_done: OnAppended,
    ) -> None:
        """Publish into the stream of the subject; `on_done` gets the acknowledgement, or the error, in a later turn."""

        def take(answer: Incoming | BusUnavailable) -> None:
            on_done(answer if isinstance(answer, BusUnavailable) else _to_ack(subject, answer))

        try:
            self.link.ask(subject, payload, take, timeout_s=timeout_s, headers=headers)
        except BusUnavailable as error:
            asyncio.get_running_loop().call_soon(on_done, error)

    async def _call(self, method: str, body: bytes, reply_type: type[T]) -> T:
        try:
            incoming = await self._ask(f"$JS.API.{method}", body)
        except NoResponder as error:
            raise NoJetStream(
                f"JetStream is off at {self.link.where}: start nats-server with --jetstream; see `busway doctor`"
            ) from error
        try:
            return msgspec.json.decode(incoming.payload, type=reply_type)
        except msgspec.MsgspecError as error:
            raise Malformed(f"$JS.API.{method}: {error}") from error

    async def _ask(self, subject: str, body: bytes) -> Incoming:
        """Ask until there is an answer: a cluster has none while it chooses a leader, and no call does harm twice."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + API_TIMEOUT_S
        while True:
            try:
                return await self.link.request(subject, body, timeout_s=ASK_AGAIN_S)
            except NoResponder:
                raise
            except BusUnavailable:
                if loop.time() >= deadline:
                    raise


def _to_ack(subject: str, incoming: Incoming) -> AppendAck | BuswayError:
    if is_unheard(incoming):
        return NoResponder(f"nobody listens on {subject}")
    try:
        reply = _pub_reply.decode(incoming.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Malformed(f"{subject}: no acknowledgement of a stream: {incoming.payload[:80]!r}")
    if reply.error is not None:
        return to_error(subject, reply.error)
    return AppendAck(reply.seq, reply.duplicate)


def to_error(what: str, error: ApiError) -> BuswayError:
    """Return the exception that fits an error of the server."""
    text = f"{what}: {error.description} ({error.err_code or error.code})"
    if error.err_code in WRONG_LAST_SEQUENCE:
        return Conflict(text)
    if error.err_code in _FULL:
        return QueueFull(text)
    if error.err_code in _REFUSED:
        return StreamMismatch(text)
    if error.err_code in _TOO_LARGE:
        return Malformed(text)
    return BusUnavailable(text)


def publish_headers(
    *, msg_id: str = "", ttl_s: int | None = None, last_subject_seq: int | None = None
) -> dict[str, str] | None:
    """Return the headers that steer how a stream stores a message, or None when there are none."""
    headers: dict[str, str] = {}
    if msg_id:
        headers["Nats-Msg-Id"] = msg_id
    if ttl_s is not None:
        headers[wire.TTL] = str(max(1, int(ttl_s)))
    if last_subject_seq is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(last_subject_seq)
    return headers or None
