"""I/O. Tells which blocks the engine holds: events as they happen, checkpoints, and answers to who missed some."""

from collections import deque
from collections.abc import Iterable, Sequence

import anyio
import anyio.lowlevel
import structlog

from bus.codec import codec
from bus.errors import BusUnavailable, Malformed
from bus.messages.kv import KvEvent, KvQuery
from bus.metrics import KV_ANSWERS, MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming
from kv_events.log import KvLog

MAX_QUERIES = 64
"""Questions that wait; who asks one more is not heard and asks again."""
ROLLUP = {"Nats-Rollup": "sub"}
"""Lets the stream forget what it has of this worker: what comes with it stands for all that."""

log = structlog.get_logger()
_queries = codec(KvQuery)


class EventPublisher:
    """Publishes the worker's `KvLog`. A bus that is full loses batches: the gap in the numbers tells readers."""

    def __init__(self, bus: Bus, subject: str, kv_log: KvLog) -> None:
        self.log = kv_log
        self._bus = bus
        self._subject = subject
        self._queries: deque[tuple[KvQuery, str]] = deque()
        self._is_checkpoint_due = False
        self._has_work = anyio.Event()
        self._num_lost = 0

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Number these events and send them."""
        for payload in self.log.append(events):
            try:
                self._bus.publish(self._subject, payload)
            except BusUnavailable:
                self._num_lost += 1
                continue
            if self._num_lost:
                log.warning("kv_events.lost", num_batches=self._num_lost)
                self._num_lost = 0
        if self.log.is_checkpoint_due():
            self._request_checkpoint()

    def on_query(self, message: Incoming) -> None:
        """Take a question; its answer is sent by `run`."""
        try:
            query = _queries.decode(message.payload)
        except Malformed:
            MALFORMED_MESSAGES.labels("kvq").inc()
            return
        if message.reply and len(self._queries) < MAX_QUERIES:
            self._queries.append((query, message.reply))
            self._has_work.set()

    async def run(self) -> None:
        """Answer, and write checkpoints, until cancelled.

        Each part is built in a turn of the event loop of its own: steps go on between.
        """
        subscription = self._bus.subscribe(self._bus.subjects.kvq(self.log.worker), self.on_query)
        self._bus.on_reconnect(self._checkpoint_again)
        try:
            while True:
                await self._has_work.wait()
                self._has_work = anyio.Event()
                if self._is_checkpoint_due:
                    self._is_checkpoint_due = False
                    await self._send(self._subject, self.log.checkpoint(), ROLLUP)
                while self._queries:
                    query, reply = self._queries.popleft()
                    await self._send(reply, self.log.answer(query))
                    KV_ANSWERS.inc()
        finally:
            subscription.unsubscribe()

    async def _send(self, subject: str, payloads: Iterable[bytes], headers: dict[str, str] | None = None) -> None:
        """Send all, the first one with `headers`; give up when the bus is full: readers see what is missing."""
        for payload in payloads:
            try:
                self._bus.publish(subject, payload, headers=headers)
            except (BusUnavailable, Malformed):
                return
            headers = None
            await anyio.lowlevel.checkpoint()

    async def _checkpoint_again(self) -> None:
        """The broker may have lost the stream."""
        self._request_checkpoint()

    def _request_checkpoint(self) -> None:
        self._is_checkpoint_due = True
        self._has_work.set()
