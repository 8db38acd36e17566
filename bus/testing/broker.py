"""I/O. The broker in memory and its connections: delivery in the order of sending, in turns of the event loop."""

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.lowlevel
import structlog

from bus import wire
from bus.blobs import check_digest
from bus.connection import load_declared
from bus.errors import BadConfig, BusUnavailable, Malformed, NoResponder
from bus.metrics import BUS_HANDLER_ERRORS
from bus.protocol import AppendAck, ConsumerSpec, Delivery, Handler, Incoming, Pull, Subscription
from bus.subjects import Subjects
from bus.testing.bucket import MemoryBucket, MemoryStore
from bus.testing.matching import matches
from bus.testing.store import MemoryConsumer, MemoryStream, Puller, Stored

log = structlog.get_logger()

MAX_PAYLOAD_BYTES = 8 * 2**20

MAX_REMEMBERED = 4096
"""Subjects of which the broker remembers who takes them."""

T = TypeVar("T")


class MemoryBroker:
    """Everything that nats-server would hold; connections of one event loop share it.

    It knows time by the loop's clock only, and picks members of a queue group in turn: the same run gives the same
    order. `restart` plays a server that died: memory streams and buckets are empty, files are kept.
    """

    def __init__(self, namespace: str = "busway") -> None:
        self.subjects = Subjects(namespace)
        self.declared = load_declared(self.subjects)
        self.streams: dict[str, MemoryStream] = {}
        self.buckets: dict[str, MemoryStore] = {}
        self.blobs: dict[str, bytes] = {}
        self.is_up = True
        self._subscriptions: list[MemorySubscription] = []
        self._receivers: dict[str, list[MemorySubscription]] = {}
        self._streams_of: dict[str, MemoryStream | None] = {}
        self._buses: list[MemoryBus] = []
        self._num_buses = 0
        self._turns: Counter[tuple[str, str]] = Counter()

    @asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator["MemoryBus"]:
        """Open a connection."""
        self._num_buses += 1
        bus = MemoryBus(self, name, self._num_buses)
        self._buses.append(bus)
        try:
            yield bus
        finally:
            # What was published is on its way already: delivery is the receivers' affair.
            self._buses.remove(bus)
            self._subscriptions = [entry for entry in self._subscriptions if entry.bus is not bus]
            self._receivers.clear()

    async def restart(self) -> None:
        """Lose what was in memory, and let each connection restore itself."""
        self.stop()
        await self.start()

    def stop(self) -> None:
        """Be away: nothing is delivered, every call that waits fails."""
        self.is_up = False
        for stream in self.streams.values():
            if stream.is_memory:
                stream.clear()
        for store in self.buckets.values():
            if store.is_memory:
                store.clear()

    async def start(self) -> None:
        """Be back, with streams and buckets as declared if they were there before."""
        self.is_up = True
        for bus in self._buses:
            for pull in bus.pulls:
                pull.restore()
        for store in self.buckets.values():
            for watcher in store.watchers:
                watcher.read_again()
        for bus in self._buses:
            await bus.restore()

    def ensure(self) -> None:
        self._streams_of.clear()
        for declared in self.declared:
            if declared.kind == "stream":
                self.streams.setdefault(declared.short, MemoryStream(declared))
            elif declared.kind == "bucket":
                self.buckets.setdefault(declared.short, MemoryStore(is_memory=declared.is_memory))

    def find_stream(self, subject: str) -> MemoryStream | None:
        """Return the stream that stores a subject; remembered, for the same few subjects come all the time."""
        if subject in self._streams_of:
            return self._streams_of[subject]
        found = None
        for stream in self.streams.values():
            if any(matches(pattern, subject) for pattern in stream.filters):
                found = stream
                break
        _remember(self._streams_of, subject, found)
        return found

    def add(self, subscription: "MemorySubscription") -> None:
        self._subscriptions.append(subscription)
        self._receivers.clear()

    def remove(self, subscription: "MemorySubscription") -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._receivers.clear()

    def route(self, incoming: Incoming) -> int:
        """Hand a message to every subscription, and to one of each queue group; return how many got it."""
        receivers = self._receivers.get(incoming.subject)
        if receivers is None:
            receivers = [entry for entry in self._subscriptions if matches(entry.pattern, incoming.subject)]
            _remember(self._receivers, incoming.subject, receivers)
        groups: dict[tuple[str, str], list[MemorySubscription]] = {}
        num_receivers = 0
        for subscription in receivers:
            if subscription.queue:
                groups.setdefault((subscription.pattern, subscription.queue), []).append(subscription)
            else:
                subscription.send(incoming)
                num_receivers += 1
        for group, members in groups.items():
            members[self._turns[group] % len(members)].send(incoming)
            self._turns[group] += 1
            num_receivers += 1
        return num_receivers


class MemorySubscription:
    """A live subscription."""

    def __init__(self, bus: "MemoryBus", pattern: str, queue: str, handler: Handler) -> None:
        self.bus = bus
        self.pattern = pattern
        self.queue = queue
        self._handler = handler
        self._is_open = True

    def send(self, incoming: Incoming) -> None:
        self.bus.post(lambda: self._receive(incoming), incoming.subject)

    def unsubscribe(self) -> None:
        self._is_open = False
        self.bus.broker.remove(self)

    def _receive(self, incoming: Incoming) -> None:
        if self._is_open:
            self._handler(incoming)


class MemoryDelivery:
    """One message of a stream, held until its fate is decided."""

    def __init__(self, consumer: MemoryConsumer, stored: Stored, num_delivered: int) -> None:
        self._consumer = consumer
        self.subject = stored.subject
        self.payload = stored.payload
        self.headers = stored.headers
        self.stream_seq = stored.seq
        self.num_delivered = num_delivered

    def ack(self) -> None:
        self._consumer.done(self.stream_seq)

    def nak(self, delay_s: float = 0.0) -> None:
        self._consumer.nak(self.stream_seq, delay_s)

    def term(self, reason: str) -> None:
        self._consumer.done(self.stream_seq)

    def in_progress(self) -> None:
        self._consumer.in_progress(self.stream_seq)


class MemoryPull:
    """A standing pull."""

    def __init__(
        self, bus: "MemoryBus", stream: MemoryStream, spec: ConsumerSpec, handler: Callable[[Delivery], None]
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._spec = spec
        self._handler = handler
        self._is_open = True
        self._outstanding = 0
        self._puller = Puller(self._deliver)
        self._consumer = stream.find_consumer(spec)
        self._consumer.join(self._puller)

    def grant(self, num_messages: int) -> None:
        missing = num_messages - self._outstanding
        if missing > 0:
            self._outstanding = num_messages
            self._puller.credit += missing
            if self._bus.broker.is_up:
                self._consumer.pump()

    def restore(self) -> None:
        self._consumer.leave(self._puller)
        self._consumer = self._stream.find_consumer(self._spec)
        self._consumer.join(self._puller)
        self._consumer.pump()

    def close(self) -> None:
        self._is_open = False
        self._consumer.leave(self._puller)

    def _deliver(self, stored: Stored, num_delivered: int) -> None:
        delivery = MemoryDelivery(self._consumer, stored, num_delivered)
        self._bus.post(lambda: self._receive(delivery), stored.subject)

    def _receive(self, delivery: MemoryDelivery) -> None:
        if self._is_open:
            self._outstanding -= 1
            self._handler(delivery)


class MemoryBus:
    """`bus.protocol.Bus` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, name: str, number: int) -> None:
        self.broker = broker
        self.name = name
        self.pulls: list[MemoryPull] = []
        self._number = number
        self._turn: deque[tuple[Callable[[], None], str]] = deque()
        self._restores: list[Callable[[], Awaitable[None]]] = []
        self._logged: set[tuple[str, str]] = set()
        self._num_requests = 0

    @property
    def subjects(self) -> Subjects:
        return self.broker.subjects

    @property
    def is_connected(self) -> bool:
        return self.broker.is_up

    @property
    def max_payload_bytes(self) -> int:
        return MAX_PAYLOAD_BYTES

    def post(self, call: Callable[[], None], subject: str) -> None:
        """Queue a delivery behind those before it."""
        self._turn.append((call, subject))
        if len(self._turn) == 1:
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        for _ in range(len(self._turn)):
            call, subject = self._turn[0]
            try:
                call()
            except Exception as error:
                self._on_error(subject, error)
            self._turn.popleft()
        if self._turn:
            asyncio.get_running_loop().call_soon(self._take_turn)

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(_checked(subject, payload, reply, headers))

    def _send(self, incoming: Incoming) -> int:
        if not self.broker.is_up:
            return 0
        stream = self.broker.find_stream(incoming.subject)
        if stream is not None:
            try:
                stream.append(incoming.subject, incoming.payload, incoming.headers)
            except BusUnavailable:
                log.debug("message.refused", subject=incoming.subject)
        return self.broker.route(incoming)

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        subscription = MemorySubscription(self, wire.check_filter(subject), wire.check_queue(queue), handler)
        self.broker.add(subscription)
        return subscription

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 2.0) -> Incoming:
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()

        def take(incoming: Incoming) -> None:
            if not future.done():
                future.set_result(incoming)

        self._num_requests += 1
        inbox = f"_INBOX.{self._number}.{self._num_requests}"
        subscription = self.subscribe(inbox, take)
        try:
            if self._send(_checked(subject, payload, inbox, None)) == 0 and self.broker.is_up:
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
        stream = self.broker.find_stream(subject)
        if stream is None:
            raise NoResponder(f"nobody listens on {subject}")
        ack = stream.append(subject, payload, None, msg_id, ttl_s)
        self.broker.route(incoming)
        return ack

    @asynccontextmanager
    async def pull(self, consumer: ConsumerSpec, handler: Callable[[Delivery], None]) -> AsyncIterator[Pull]:
        _need_declared(self.broker, "stream", consumer.stream)
        stream = self.broker.streams.get(consumer.stream)
        if stream is None:
            raise BusUnavailable(f"stream {consumer.stream}: stream not found (10059)")
        pull = MemoryPull(self, stream, consumer, handler)
        self.pulls.append(pull)
        try:
            yield pull
        finally:
            self.pulls.remove(pull)
            pull.close()

    def bucket(self, name: str) -> MemoryBucket:
        _need_declared(self.broker, "bucket", name)
        self.broker.ensure()
        return MemoryBucket(
            self.broker.buckets[name],
            lambda call: self.post(call, ""),
            lambda: self._need_broker(f"bucket {name}", 1.0),
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

    async def restore(self) -> None:
        for restore in self._restores:
            try:
                await restore()
            except Exception as error:
                log.error("bus.restore_failed", exc_info=error)

    async def _need_broker(self, purpose: str, timeout_s: float) -> None:
        await anyio.lowlevel.checkpoint()
        if not self.broker.is_up:
            await anyio.sleep(timeout_s)
            if not self.broker.is_up:
                raise BusUnavailable(f"{purpose}: the broker is away for {timeout_s} s")

    def _on_error(self, subject: str, error: Exception) -> None:
        family = self.subjects.family(subject)
        BUS_HANDLER_ERRORS.labels(family=family).inc()
        if (family, type(error).__qualname__) not in self._logged:
            self._logged.add((family, type(error).__qualname__))
            log.error("handler.failed", family=family, subject=subject, exc_info=error)


def _remember(cache: dict[str, T], subject: str, found: T) -> None:
    """Keep an answer for a subject; inboxes come once, and a flood of subjects starts the cache again."""
    if not subject.startswith("_INBOX."):
        if len(cache) >= MAX_REMEMBERED:
            cache.clear()
        cache[subject] = found


def _checked(subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> Incoming:
    wire.check_subject(subject)
    if reply:
        wire.check_subject(reply)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Malformed(f"{subject}: {len(payload)} bytes, but the broker takes at most {MAX_PAYLOAD_BYTES}")
    parsed = wire.parse_headers(wire.header_block(headers)) if headers else None
    return Incoming(subject, bytes(payload), reply, parsed)


def _need_declared(broker: MemoryBroker, kind: str, short: str) -> None:
    if not any(entry.kind == kind and entry.short == short for entry in broker.declared):
        known = ", ".join(entry.short for entry in broker.declared if entry.kind == kind)
        raise BadConfig(f"no {kind} {short!r} is declared in nats/; known: {known}")
