"""I/O. Where the output of a request goes: server-sent events, one HTTP body, or messages on a NATS subject."""

from bus.errors import BusUnavailable, BuswayError
from bus.protocol import Bus
from frontend.doors.call import processing_line
from frontend.doors.exchange import Exchange
from frontend.waited import Waited

_COMMENT = b": keep-alive\n\n"


class EventSink(Waited):
    """Server-sent events, written to the transport; the response begins with the first of them.

    Up to then an error can still be an HTTP status: it is kept in `error` for the handler that waits.
    """

    def __init__(self, exchange: Exchange, headers: bytes, arrived_at: float) -> None:
        """`arrived_at` is when the request came, on the clock of `time.monotonic`."""
        self._exchange = exchange
        self._headers = headers
        self._arrived_at = arrived_at
        self._has_begun = False
        self._is_quiet = False

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Write one event, given in three parts."""
        if self._exchange.is_chunked:
            data = b"%x\r\n%b%b%b\r\n" % (len(head) + len(text) + len(tail), head, text, tail)
        else:
            data = head + text + tail
        self._is_quiet = False
        self._exchange.write(data if self._has_begun else self._begin() + data)

    def keep_alive(self) -> None:
        """Write a comment, which clients skip, if nothing was written since the last call."""
        if self._is_quiet and not self.is_over:
            self.send(_COMMENT, b"", b"")
        else:
            self._is_quiet = True

    def close(self, rest: bytes, last: bytes) -> None:
        """Write the last events and complete the response."""
        data = rest + last
        if self._exchange.is_chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        self._exchange.write(data if self._has_begun else self._begin() + data)
        self._exchange.finish()
        self.end()

    def _begin(self) -> bytes:
        self._has_begun = True
        return self._exchange.begin(200, self._headers + processing_line(self._arrived_at))

    def fail(self, error: BuswayError, last: bytes) -> None:
        """End with the error: as an event where the response has begun, else as the handler's answer."""
        if self._has_begun:
            self.close(b"", last)
        else:
            self.error = error
            self.end()


class BodySink(Waited):
    """One body, kept in `body` (or `error`) for the handler that waits for its end."""

    def __init__(self) -> None:
        self.body = b""

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Add a part of the body."""
        self.body += head + text + tail

    def close(self, rest: bytes, last: bytes) -> None:
        """Add the last parts."""
        self.body += rest + last
        self.end()

    def fail(self, error: BuswayError, last: bytes) -> None:
        """End with the error instead of a body."""
        self.error = error
        self.end()


class SubjectSink(Waited):
    """Messages on a NATS subject. A bus that takes no more ends the answer: it is over, the rest is dropped."""

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus = bus
        self._is_broken = False
        self.subject = subject

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Publish one message, given in three parts."""
        if self._is_broken:
            return
        try:
            self._bus.publish(self.subject, head + text + tail)
        except BusUnavailable as error:
            self._is_broken = True
            self.error = error
            self.end()

    def close(self, rest: bytes, last: bytes) -> None:
        """Publish the last messages."""
        if rest:
            self.send(rest, b"", b"")
        self.send(last, b"", b"")
        self.end()

    def fail(self, error: BuswayError, last: bytes) -> None:
        """Leave the error to who waits for its end: it is published with its headers."""
        self.error = error
        self.end()


class ChunkSink(SubjectSink):
    """Answers of an API that is spoken over HTTP, on a NATS subject: a message for each event, an empty one at the end.

    What is no event, an answer in one piece, is one message. JSON holds no line ends, so that the lines of the events
    are found without reading them.
    """

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Publish what the events carry."""
        for event in (head + text + tail).split(b"\n\n"):
            data = event.removeprefix(b"data: ")
            if data:
                super().send(b"" if data == b"[DONE]" else data, b"", b"")
