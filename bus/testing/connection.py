"""I/O. A connection to the broker in memory: the bus as one process sees it."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import NoReturn, Protocol

import anyio
import anyio.lowlevel
import structlog

from bus import wire
from bus.blobs import check_digest
from bus.errors import BusUnavailable, BuswayError, Malformed, NoResponder, QueueFull
from bus.protocol import AppendAck, ConsumerSpec, Delivery, Handler, Incoming, OnAppended, Pull, Subscription
from bus.replies import INBOX
from bus.subjects import Subjects, slug
from bus.testing.bucket import MemoryBucket, MemoryStore
from bus.testing.faults import Action, Faults
from bus.testing.matching import matches
from bus.testing.pull import MemoryPull
from bus.testing.store import MemoryStream
from bus.troubles import Troubles

log = structlog.get_logger()

MAX_PAYLOAD_BYTES = 8 * 2**20


class Broker(Protocol):
    """What connections share."""

    is_up: bool
    blobs: dict[str, bytes]
    faults: Faults

    @property
    def subjects(self) -> Subjects: ...
    def ensure(self) -> None: ...
    def find_stream(self, subject: str) -> MemoryStream | None: ...
    def open_stream(self, short: str) -> MemoryStream: ...
    def open_bucket(self, short: str) -> MemoryStore: ...
    def add(self, subscription: "MemorySubscription") -> None: ...
    def remove(self, subscription: "MemorySubscription") -> None: ...
    def route(self, incoming: Incoming) -> int: ...


class MemorySubscription:
    """A live subscription."""

    def __init__(self, bus: "MemoryBus", pattern: str, queue: str, handler: Handler) -> None:
        self.bus = bus
        self.pattern = pattern
        self.queue = queue
        self._handler = handler
        self._is_open = True

    def send(self, incoming: Incoming) -> None:
        if self.bus.is_connected:
            self.bus.post(partial(self._receive, incoming), incoming.subject)

    def unsubscribe(self) -> None:
        self._is_open = False
        self.bus.broker.remove(self)

    def _receive(self, incoming: Incoming) -> None:
        if self._is_open:
            self.bus.arrives("receive", incoming.subject, incoming.payload)
            self._handler(incoming)


class MemoryBus:
    """`bus.protocol.Bus` on a `MemoryBroker`."""

    def __init__(self, broker: Broker, name: str, number: int) -> None:
        self.broker = broker
        self.name = name
        self.pulls: list[MemoryPull] = []
        self.is_cut = False
        """No message gets through, to or from here, while everybody else is connected."""
        self.context = copy_context()
        """What is delivered runs as a part of who opened the connection, not of who sent it."""
        self._number = number
        self._num_inboxes = 0
        self._turn: deque[tuple[Callable[[], None], str]] = deque()
        self._restores: list[Callable[[], Awaitable[None]]] = []
        self._is_restore_due = False
        self._troubles = Troubles(broker.subjects)

    @property
    def subjects(self) -> Subjects:
        return self.broker.subjects

    @property
    def is_connected(self) -> bool:
        return self.broker.is_up and not self.is_cut

    @property
    def is_guarded(self) -> bool:
        return False

    @property
    def max_payload_bytes(self) -> int:
        return MAX_PAYLOAD_BYTES

    def post(self, call: Callable[[], None], subject: str) -> None:
        """Queue a delivery behind those before it."""
        self._turn.append((call, subject))
        if len(self._turn) == 1:
            asyncio.get_running_loop().call_soon(self._take_turn, context=self.context)

    def _take_turn(self) -> None:
        for _ in range(len(self._turn)):
            call, subject = self._turn[0]
            try:
                call()
            except Exception as error:
                self._troubles.handler_failed(subject, error)
            self._turn.popleft()
        if self._turn:
            asyncio.get_running_loop().call_soon(self._take_turn, context=self.context)

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(_checked(subject, payload, reply, headers))

    def _send(self, incoming: Incoming) -> int:
        if not self.is_connected or not self.sends("publish", incoming.subject, incoming.payload):
            return 0
        stream = self.broker.find_stream(incoming.subject)
        if stream is not None:
            try:
                stream.append(incoming.subject, incoming.payload, incoming.headers)
            except (BusUnavailable, QueueFull):
                # As on the server: nobody waits for an acknowledgement, so nobody hears of it.
                log.debug("message.refused", subject=incoming.subject)
        return self.broker.route(incoming)

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        subscription = MemorySubscription(self, wire.check_filter(subject), wire.check_queue(queue), handler)
        self.broker.add(subscription)
        return subscription

    def defer(self, function: Callable[[], None]) -> None:
        self.post(function, "")

    def new_inbox(self) -> str:
        self._num_inboxes += 1
        return f"{INBOX}.{slug(self.name)}.{self._number}.{self._num_inboxes}"

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 2.0) -> Incoming:
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()

        def take(incoming: Incoming) -> None:
            if not future.done():
                future.set_result(incoming)

        inbox = self.new_inbox()
        subscription = self.subscribe(inbox, take)
        try:
            if self._send(_checked(subject, payload, inbox, None)) == 0 and self.is_connected:
                raise NoResponder(f"nobody listens on {subject}")
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            raise BusUnavailable(f"{subject}: no answer within {timeout_s:.3g} s") from error
        finally:
            subscription.unsubscribe()

    async def flush(self, *, timeout_s: float = 2.0) -> None:
        await self._need_broker("flush", timeout_s)
        turn = anyio.Event()
        self.post(turn.set, "")
        await turn.wait()

    async def append(
        self, subject: str, payload: bytes, *, msg_id: str = "", ttl_s: int | None = None, timeout_s: float = 1.0
    ) -> AppendAck:
        incoming = _checked(subject, payload, "", None)
        await self._need_broker(subject, timeout_s)
        ack = self._append_now(incoming, msg_id, ttl_s)
        if ack is None:
            await self._wait_in_vain(subject, timeout_s)
        if isinstance(ack, BuswayError):
            raise ack
        return ack

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
        incoming = _checked(subject, payload, "", None)
        if not self.is_connected:
            asyncio.get_running_loop().call_later(
                timeout_s, self._append_late, incoming, on_done, msg_id, ttl_s, context=self.context
            )
            return
        ack = self._append_now(incoming, msg_id, ttl_s)
        if ack is not None:
            self.post(partial(on_done, ack), subject)
        else:
            error = BusUnavailable(f"{subject}: no answer within {timeout_s:.3g} s")
            asyncio.get_running_loop().call_later(timeout_s, on_done, error, context=self.context)

    def _append_late(self, incoming: Incoming, on_done: OnAppended, msg_id: str, ttl_s: int | None) -> None:
        ack = self._append_now(incoming, msg_id, ttl_s) if self.is_connected else None
        on_done(ack or BusUnavailable(f"{incoming.subject}: the broker is away"))

    def _append_now(self, incoming: Incoming, msg_id: str, ttl_s: int | None) -> AppendAck | BuswayError | None:
        """Store, if it gets there, and return what the broker answers; None: nothing comes back."""
        subject, payload = incoming.subject, incoming.payload
        fate = self.broker.faults.stores(self.name, subject)
        if fate == "lost" or not self.sends("append", subject, payload):
            return None
        stream = self.broker.find_stream(subject)
        if stream is None:
            return NoResponder(f"nobody listens on {subject}")
        try:
            ack = stream.append(subject, payload, None, msg_id, ttl_s)
        except (BusUnavailable, QueueFull) as error:
            return error
        self.broker.route(incoming)
        return ack if fate == "kept" else None

    @asynccontextmanager
    async def pull(self, consumer: ConsumerSpec, handler: Callable[[Delivery], None]) -> AsyncIterator[Pull]:
        pull = MemoryPull(self, self.broker.open_stream(consumer.stream), consumer, handler)
        self.pulls.append(pull)
        try:
            yield pull
        finally:
            self.pulls.remove(pull)
            pull.close()

    async def replay(self, stream: str, filter_subject: str, handler: Handler) -> None:
        await self._need_broker(f"stream {stream}", 1.0)
        for stored in list(self.broker.open_stream(stream).messages.values()):
            if matches(filter_subject, stored.subject):
                self.post(
                    partial(handler, Incoming(stored.subject, stored.payload, "", stored.headers)), stored.subject
                )
        await self.flush()

    async def stored(self, stream: str, filter_subject: str) -> list[bytes]:
        await self._need_broker(f"stream {stream}", 1.0)
        messages = self.broker.open_stream(stream).messages.values()
        return [stored.payload for stored in messages if matches(filter_subject, stored.subject)]

    def bucket(self, name: str) -> MemoryBucket:
        return MemoryBucket(
            self.broker.open_bucket(name),
            self,
            lambda: self._reach_bucket(name),
        )

    async def put_blob(self, data: bytes) -> str:
        await self._need_broker("put_blob", 1.0)
        digest = hashlib.sha256(data).hexdigest()
        self.broker.blobs[digest] = data
        return digest

    async def get_blob(self, digest: str) -> bytes:
        check_digest(digest)
        await self._need_broker("get_blob", 1.0)
        if digest not in self.broker.blobs:
            raise BusUnavailable(f"blob {digest} is not there")
        return self.broker.blobs[digest]

    async def ensure(self) -> None:
        self.broker.ensure()

    def on_reconnect(self, restore: Callable[[], Awaitable[None]]) -> None:
        self._restores.append(restore)

    def sends(self, action: Action, subject: str, payload: bytes) -> bool:
        """Tell the broker's faults what this connection is about to do; False: it does not get out."""
        return self.broker.faults.sends(action, self.name, subject, payload)

    def arrives(self, action: Action, subject: str, payload: bytes) -> None:
        """Tell the broker's faults what this connection is about to be handed."""
        self.broker.faults.arrives(action, self.name, subject, payload)

    def note_lost(self) -> bool:
        """Say whether a restore is to be started: a process that stood still sees one reconnect, however many were."""
        is_first = not self._is_restore_due
        self._is_restore_due = True
        return is_first

    async def restore(self) -> None:
        """Let the process put back what the broker may have lost."""
        self._is_restore_due = False
        for restore in self._restores:
            try:
                await restore()
            except Exception as error:
                log.error("bus.restore_failed", connection=self.name, exc_info=error)

    async def _need_broker(self, purpose: str, timeout_s: float) -> None:
        await anyio.lowlevel.checkpoint()
        if not self.is_connected:
            await anyio.sleep(timeout_s)
            if not self.is_connected:
                raise BusUnavailable(f"{purpose}: the broker is away for {timeout_s} s")

    async def _reach_bucket(self, name: str) -> None:
        await self._need_broker(f"bucket {name}", 1.0)
        if not self.sends("put", f"bucket {name}", b""):
            await self._wait_in_vain(f"bucket {name}", 1.0)

    async def _wait_in_vain(self, purpose: str, timeout_s: float) -> NoReturn:
        await anyio.sleep(timeout_s)
        raise BusUnavailable(f"{purpose}: no answer within {timeout_s:.3g} s")


def _checked(subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> Incoming:
    wire.check_subject(subject)
    if reply:
        wire.check_reply(reply)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Malformed(f"{subject}: {len(payload)} bytes, but the broker takes at most {MAX_PAYLOAD_BYTES}")
    parsed = wire.parse_headers(wire.header_block(headers)) if headers else None
    return Incoming(subject, bytes(payload), reply, parsed)
