"""Pure. What a bus offers: implemented on NATS (`bus.connection`) and in memory (`bus.testing`)."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from bus.errors import BuswayError
from bus.subjects import Subjects


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """One received message."""

    subject: str
    payload: bytes
    reply: str = ""
    headers: Mapping[str, str] | None = None


Handler = Callable[[Incoming], None]
"""Called synchronously in the event loop, once a message; what it raises is logged and counted, no more."""


class Subscription(Protocol):
    """A live subscription."""

    def unsubscribe(self) -> None:
        """Stop receiving at once; messages in flight are dropped."""


class Delivery(Protocol):
    """One message of a stream, held until its fate is decided.

    The four verbs are buffered, they never wait. While the connection is down, or when the broker that made the
    delivery is gone, they do nothing: the message comes again, if it is still there.
    """

    @property
    def subject(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str] | None: ...
    @property
    def stream_seq(self) -> int: ...
    @property
    def num_delivered(self) -> int: ...

    def ack(self) -> None:
        """The message is done: the stream forgets it (work queue) or moves on."""

    def nak(self, delay_s: float = 0.0) -> None:
        """Give it back, to anyone, after `delay_s`."""

    def term(self, reason: str) -> None:
        """Never deliver it again."""

    def in_progress(self) -> None:
        """Ask for another `ack_wait_s`."""


class ConsumerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A durable consumer; created when missing, also after the broker lost it."""

    stream: str
    """Name without the namespace, as in `nats/streams/*.json`."""
    name: str
    filter_subject: str
    ack_wait_s: float = 2.0
    max_deliver: int = 5
    max_ack_pending: int = 20_000
    inactive_s: float | None = None
    """Forget the consumer when nobody pulled for so long; None keeps it."""


class Pull(Protocol):
    """A standing pull on a consumer: deliveries arrive by the handler, as many as were granted."""

    def grant(self, num_messages: int) -> None:
        """Top up what may still be delivered to `num_messages` in all; less than is outstanding changes nothing."""


class Entry(msgspec.Struct, frozen=True):
    """One value of a bucket; `value` None says that the key is gone (deleted, purged or expired)."""

    key: str
    value: bytes | None
    revision: int


class Bucket(Protocol):
    """A key-value bucket."""

    async def get(self, key: str) -> Entry | None:
        """Return the live entry, or None."""

    async def put(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """Write, return the revision; the entry disappears `ttl_s` (at least 1) after its last write."""

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write if the entry is still at `revision` (0: if there is none), else raise `Conflict`."""

    async def delete(self, key: str) -> None:
        """Remove; unknown keys are no error."""

    async def entries(self) -> list[Entry]:
        """Return all live entries."""

    def watch(self, handler: Callable[[Entry], None]) -> AbstractAsyncContextManager[None]:
        """Call `handler` with every live entry, then with every change, across reconnects and lost brokers.

        Entering waits until the entries that were there have been handed over. Only the latest state of a key is
        promised, not each step to it. After a broker was lost, keys that are not there again are told as gone, but
        no sooner than 2 s after the bucket could be read: their owners put them again meanwhile.
        """


class AppendAck(msgspec.Struct, frozen=True):
    """The broker stored the message as `stream_seq`, or had its `msg_id` already."""

    stream_seq: int
    is_duplicate: bool = False


OnAppended = Callable[[AppendAck | BuswayError], None]
"""Hears what became of a message: it was stored, or the error that `Bus.append` raises."""


class Bus(Protocol):
    """One connection to the broker. All calls belong to the event loop that opened it."""

    @property
    def subjects(self) -> Subjects: ...
    @property
    def is_connected(self) -> bool: ...
    @property
    def max_payload_bytes(self) -> int: ...

    @property
    def is_guarded(self) -> bool:
        """Whether the broker knows who is who: then tenants are who they say, and inboxes are read by their owners."""

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send at most once, without waiting.

        Raises `BusUnavailable` when the send buffer is full (16 MiB, 1 MiB while the connection is down: what it
        holds is sent late), `Malformed` for subjects, headers and payloads that the broker would not take.
        """

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Receive messages of a subject filter; members of one `queue` share them."""

    def defer(self, function: Callable[[], None]) -> None:
        """Call once, when all that the broker sent at once was handed over and before the answers to it are sent.

        Where nothing is being handed over, that is a later turn of the event loop. What is decided for a whole burst
        costs no turn of its own so.
        """

    def new_inbox(self) -> str:
        """Return a subject for replies that only this connection listens on, and that it may listen on."""

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 2.0) -> Incoming:
        """Return the first reply; raise `NoResponder` at once, `BusUnavailable` after `timeout_s`."""

    async def flush(self, *, timeout_s: float = 2.0) -> None:
        """Wait until the broker has processed all that was sent before (a true barrier)."""

    async def append(
        self, subject: str, payload: bytes, *, msg_id: str = "", ttl_s: int | None = None, timeout_s: float = 1.0
    ) -> AppendAck:
        """Store in the stream of the subject.

        Raises `QueueFull` (a limit of the stream), `NoResponder` (no stream there), `BusUnavailable`.
        """

    def append_soon(
        self,
        subject: str,
        payload: bytes,
        on_done: OnAppended,
        *,
        msg_id: str = "",
        ttl_s: int | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        """Store as `append` does, but wait for nothing: it costs neither task nor future nor timer.

        `on_done` is called once, in a later turn of the event loop. Raises `Malformed` as `publish` does. While the
        connection is down it costs a task: whoever calls bounds what is on its way.
        """

    def pull(self, consumer: ConsumerSpec, handler: Callable[[Delivery], None]) -> AbstractAsyncContextManager[Pull]:
        """Keep a standing pull while the context is open; leaving it unsubscribes and naks nothing by itself.

        It goes on by itself after reconnects and when the consumer was lost. Entering raises `StreamMismatch` when the
        stream cannot have this consumer, `BusUnavailable` when there is no stream: call `ensure` before.
        A delivery whose handler raises comes again after `ack_wait_s`.
        """

    async def replay(self, stream: str, filter_subject: str, handler: Handler) -> None:
        """Call `handler` with every message that a stream holds under a filter, in the order of storing.

        Returns when those that were there at the start have been handed over; what is stored meanwhile may come, too,
        and after a reconnect messages come again. Raises `BusUnavailable`, also when there is no such stream.
        """

    async def stored(self, stream: str, filter_subject: str) -> list[bytes]:
        """Return what a stream holds under a filter, the oldest first, by one question for each message.

        For streams of few messages, work queues among them, which have no second consumer. Raises `BusUnavailable`.
        """

    def bucket(self, name: str) -> Bucket:
        """Open a bucket declared in `nats/buckets/*.json`."""

    async def put_blob(self, data: bytes) -> str:
        """Store bytes under their own SHA-256 (hex), which is returned; storing twice costs one look."""

    async def get_blob(self, digest: str) -> bytes:
        """Fetch bytes and check them against `digest`; raise `BusUnavailable` when they are not there."""

    async def ensure(self) -> None:
        """Create missing streams and buckets; raise `StreamMismatch` when one differs beyond use."""

    def on_reconnect(self, restore: Callable[[], Awaitable[None]]) -> None:
        """Call `restore` after each reconnect, when streams and buckets are there again: re-register, re-publish."""
