"""I/O. A standing pull: long requests to a consumer, renewed and restored, instead of one request a message.

The server may hold several of our requests at a time; only their sum is tracked. `credit` is what the owner wants
delivered, `requested` what the server still may deliver.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import structlog

from bus import wire
from bus.errors import BusUnavailable, BuswayError, Malformed
from bus.jetstream import JetStream
from bus.link import LinkSubscription
from bus.protocol import ConsumerSpec, Delivery, Incoming

log = structlog.get_logger()

EXPIRES_S = 30.0
HEARTBEAT_S = 2.0
"""How often the server says that a waiting request is alive; two and a half silent ones and all is asked for anew."""
RETIRE_S = 1.0
"""Bound on the wait for what is on its way; what comes later comes again after its ack_wait, elsewhere."""
MAX_WAITING = 4096
RETRY_S = 0.25
"""Pause before a consumer is created again that could not be."""

CreateConsumer = Callable[[], Awaitable[str]]
"""Makes sure that the consumer exists, and returns its name."""


def to_request(credit: int, requested: int) -> int:
    """Return how many more messages to ask for: nothing until a quarter of the credit is not asked for.

    This bounds the requests that wait at the server (each adds at least a quarter to the sum of those before)
    without holding any message back: as deliveries come in, what is missing weighs more.
    """
    missing = credit - requested
    return missing if missing > 0 and missing * 4 >= credit else 0


class StreamDelivery:
    """One message of a stream, held until its fate is decided."""

    __slots__ = ("_incoming", "_origin", "_position", "_stream")

    def __init__(self, stream: JetStream, incoming: Incoming) -> None:
        self._stream = stream
        self._incoming = incoming
        self._position = wire.parse_position(incoming.reply)
        self._origin = stream.link.origin

    @property
    def subject(self) -> str:
        return self._incoming.subject

    @property
    def payload(self) -> bytes:
        return self._incoming.payload

    @property
    def headers(self) -> Mapping[str, str] | None:
        return self._incoming.headers

    @property
    def stream_seq(self) -> int:
        return self._position.stream_seq

    @property
    def num_delivered(self) -> int:
        return self._position.num_delivered

    def ack(self) -> None:
        self._answer(wire.DONE)

    def nak(self, delay_s: float = 0.0) -> None:
        self._answer(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    def term(self, reason: str) -> None:
        self._answer(b"+TERM " + " ".join(reason.split()).encode("utf-8", "replace")[:512])

    def in_progress(self) -> None:
        self._answer(b"+WPI")

    def _answer(self, verb: bytes) -> None:
        self._stream.link.answer(self._incoming.reply, verb, self._origin)


class StandingPull:
    """Keeps requests of one consumer standing; `receive` gets its messages, statuses stay here.

    `on_idle` is called when the server has nothing more to deliver.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        create: CreateConsumer,
        receive: Callable[[Incoming], None],
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._create = create
        self._receive = receive
        self._on_idle = on_idle
        self._consumer = ""
        self._credit = 0
        self._requested = 0
        self._inbox = ""
        self._num_requests = 0
        self._subscription: LinkSubscription | None = None
        self._heard_at = 0.0
        self._began_at = 0.0
        self._is_broken = asyncio.Event()
        self._now = asyncio.get_running_loop().time

    def grant(self, num_messages: int) -> None:
        if num_messages > self._credit:
            self._credit = num_messages
            self._ask()

    def reset(self) -> None:
        """What stood at the server is gone: ask again for all that is owed, as soon as possible."""
        self._is_broken.set()

    async def start(self) -> None:
        """Create the consumer and begin; raise what the server says against it."""
        self._consumer = await self._create()
        self._begin()

    async def keep(self) -> None:
        """Mend what breaks, until cancelled."""
        told: set[type[BuswayError]] = set()
        """What kinds of errors of this interruption are in the log: a line each, however often it is tried in vain."""
        since = 0.0
        while True:
            with anyio.move_on_after(HEARTBEAT_S):
                await self._is_broken.wait()
            is_silent = self._requested > 0 and self._now() - self._heard_at > 2.5 * HEARTBEAT_S
            if not (self._is_broken.is_set() or is_silent):
                continue
            self._is_broken.clear()
            self.stop()
            # A consumer that refuses each request must not keep two processes busy.
            await anyio.sleep(max(0.0, self._began_at + RETRY_S - self._now()))
            try:
                await self._jetstream.link.wait_ready(EXPIRES_S)
                await self.start()
            except BuswayError as error:
                since = since if told else self._now()
                if type(error) not in told:
                    told.add(type(error))
                    log.warning("pull.interrupted", stream=self._stream, reason=str(error))
                self._began_at = self._now()
                self._is_broken.set()
            else:
                if told:
                    log.info("pull.resumed", stream=self._stream, after_s=round(self._now() - since, 3))
                    told.clear()

    async def retire(self) -> None:
        """Ask for nothing more, and wait until all is handled that the broker had sent before it heard of that."""
        self._credit = 0
        if self._subscription is not None:
            self._subscription.retire()
            with contextlib.suppress(BusUnavailable):
                await self._jetstream.link.flush(RETIRE_S)

    def stop(self) -> None:
        """Receive nothing more; messages on their way come again after their ack_wait."""
        if self._subscription is not None:
            self._subscription.unsubscribe()
            self._subscription = None
        self._requested = 0

    def _begin(self) -> None:
        self.stop()
        self._inbox = self._jetstream.link.new_inbox()
        self._subscription = self._jetstream.link.subscribe(
            f"{self._inbox}.*", self._on_message, on_malformed=self._on_malformed
        )
        self._heard_at = self._began_at = self._now()
        self._ask()

    def _ask(self) -> None:
        batch = to_request(self._credit, self._requested)
        if batch == 0 or self._subscription is None:
            return
        self._num_requests += 1
        body = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (batch, EXPIRES_S * 1e9, HEARTBEAT_S * 1e9)
        try:
            self._jetstream.link.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                body,
                reply=f"{self._inbox}.{self._num_requests}",
            )
        except BusUnavailable:
            self.reset()
            return
        if self._requested == 0:
            self._heard_at = self._now()
        self._requested += batch

    def _on_message(self, incoming: Incoming) -> None:
        self._heard_at = self._now()
        # What comes from the stream has a reply subject, and may have any header.
        status = incoming.headers.get(wire.STATUS) if incoming.headers and not incoming.reply else None
        if status is None:
            self._requested = max(0, self._requested - 1)
            self._credit = max(0, self._credit - 1)
            try:
                self._receive(incoming)
            finally:
                self._ask()
        elif status != "100":
            self._on_status(status, incoming.headers or {})
        elif self._on_idle is not None:
            self._on_idle()

    def _on_malformed(self) -> None:
        """One of the requested messages never reaches the owner: ask for another one."""
        self._requested = max(0, self._requested - 1)
        self._ask()

    def _on_status(self, status: str, headers: Mapping[str, str]) -> None:
        pending = headers.get("Nats-Pending-Messages", "")
        if status in ("404", "408") and pending.isdigit():
            self._requested = max(0, self._requested - int(pending))
            self._ask()
        else:
            # 409: consumer deleted, leader changed, server shuts down; 503: no consumer there.
            self.reset()


def consumer_config(spec: ConsumerSpec, *, is_memory: bool) -> dict[str, Any]:
    """Return the server's settings of a durable consumer."""
    config: dict[str, Any] = {
        "durable_name": spec.name,
        "name": spec.name,
        "filter_subject": spec.filter_subject,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_wait": int(spec.ack_wait_s * 1e9),
        "max_deliver": spec.max_deliver,
        "max_ack_pending": spec.max_ack_pending,
        "max_waiting": MAX_WAITING,
        "num_replicas": 0,
        "mem_storage": is_memory,
    }
    if spec.inactive_s is not None:
        config["inactive_threshold"] = int(spec.inactive_s * 1e9)
    return config


def to_deliveries(jetstream: JetStream, handler: Callable[[Delivery], None]) -> Callable[[Incoming], None]:
    """Wrap a handler of deliveries for `StandingPull`."""

    def receive(incoming: Incoming) -> None:
        try:
            delivery = StreamDelivery(jetstream, incoming)
        except Malformed:
            # Not from a stream: somebody guessed the inbox. Nothing to answer to.
            return
        handler(delivery)

    return receive
