"""I/O. Standing pulls in memory."""

from collections.abc import Callable
from typing import Protocol

from bus.protocol import ConsumerSpec, Delivery
from bus.testing.faults import Action
from bus.testing.store import MemoryConsumer, MemoryStream, Puller, Stored


class Connection(Protocol):
    """What pulls and watches need of the connection that they belong to."""

    @property
    def is_connected(self) -> bool: ...

    def post(self, call: Callable[[], None], subject: str) -> None: ...
    def sends(self, action: Action, subject: str, payload: bytes) -> bool: ...
    def arrives(self, action: Action, subject: str, payload: bytes) -> None: ...


class MemoryDelivery:
    """One message of a stream, held until its fate is decided."""

    def __init__(self, connection: Connection, consumer: MemoryConsumer, stored: Stored, num_delivered: int) -> None:
        self._connection = connection
        self._consumer = consumer
        self.subject = stored.subject
        self.payload = stored.payload
        self.headers = stored.headers
        self.stream_seq = stored.seq
        self.num_delivered = num_delivered

    def ack(self) -> None:
        if self._reaches("ack"):
            self._consumer.done(self.stream_seq)

    def nak(self, delay_s: float = 0.0) -> None:
        if self._reaches("nak"):
            self._consumer.nak(self.stream_seq, delay_s)

    def term(self, reason: str) -> None:
        if self._reaches("term"):
            self._consumer.done(self.stream_seq)

    def in_progress(self) -> None:
        if self._reaches("in_progress"):
            self._consumer.in_progress(self.stream_seq)

    def _reaches(self, action: Action) -> bool:
        return self._connection.is_connected and self._connection.sends(action, self.subject, b"")


class MemoryPull:
    """A standing pull."""

    def __init__(
        self, connection: Connection, stream: MemoryStream, spec: ConsumerSpec, handler: Callable[[Delivery], None]
    ) -> None:
        self._connection = connection
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
            if self._connection.is_connected:
                self._consumer.pump()

    def leave(self) -> None:
        """Take nothing, until `restore`: what arrived before is still handed over."""
        self._consumer.leave(self._puller)

    def restore(self) -> None:
        self.leave()
        self._consumer = self._stream.find_consumer(self._spec)
        self._consumer.join(self._puller)
        self._consumer.pump()

    def close(self) -> None:
        self._is_open = False
        self._consumer.leave(self._puller)

    def _deliver(self, stored: Stored, num_delivered: int) -> None:
        delivery = MemoryDelivery(self._connection, self._consumer, stored, num_delivered)
        self._connection.post(lambda: self._receive(delivery), stored.subject)

    def _receive(self, delivery: MemoryDelivery) -> None:
        if self._is_open:
            self._outstanding -= 1
            self._connection.arrives("deliver", delivery.subject, delivery.payload)
            self._handler(delivery)
