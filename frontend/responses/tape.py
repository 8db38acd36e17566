"""I/O. The events of a response that is made in the background, kept while it is made for who listens, and when."""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

from bus.errors import BuswayError
from bus.messages.responses import StoredResponse
from frontend.waited import Waited

MAX_TAPE_BYTES = 8 * 2**20
"""Of one response: the oldest events go first, and who comes late begins with what is left."""
MAX_LISTENERS = 64
"""Of one response; one more is told the end only."""

Listener = Callable[[bytes], None]
"""Gets each event whole, and nothing (b"") when no more will come."""

_ENDINGS = tuple(f"event: response.{status}".encode() for status in ("completed", "incomplete", "failed", "cancelled"))


class Tape(Waited):
    """A sink of events, numbered from 0 as they come, and those who listen to them."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self._num_dropped = 0
        self.num_bytes = 0
        self._listeners: list[Listener] = []

    def listen(self, after: int, listener: Listener) -> Callable[[], None]:
        """Hand over the events after number `after`, then those that come; return what ends that."""
        for event in list(islice(self._events, max(0, after + 1 - self._num_dropped), None)):
            listener(event)
        if self.is_over or len(self._listeners) >= MAX_LISTENERS:
            listener(b"")
            return _nothing
        self._listeners.append(listener)
        return lambda: self._forget(listener)

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Record events, given in three parts."""
        for part in (head + text + tail).split(b"\n\n")[:-1]:
            event = part + b"\n\n"
            self._events.append(event)
            self.num_bytes += len(event)
            for listener in self._listeners.copy():
                listener(event)
        while self.num_bytes > MAX_TAPE_BYTES:
            self.num_bytes -= len(self._events.popleft())
            self._num_dropped += 1

    def close(self, rest: bytes, last: bytes) -> None:
        """Record the last events."""
        self.send(rest, last, b"")
        self.end()

    def fail(self, error: BuswayError, last: bytes) -> None:
        """Record the events that tell a failure; before anything else was told, keep the error alone."""
        if self._events:
            self.close(b"", last)
        else:
            self.error = error
            self.end()

    def end(self) -> None:
        """No more will come. Ending twice is ending once."""
        super().end()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(b"")

    def _forget(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)


class Heard:
    """Events that a listener was told and has not passed on: a whole tape comes at once, a client takes its time."""

    def __init__(self) -> None:
        self.is_over = False
        """No more will come: that was all, the listener is gone, or is too slow."""
        self._events: deque[bytes] = deque()
        self._num_bytes = 0
        self._changed = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether all was passed on."""
        return not self._events

    def take(self, event: bytes) -> None:
        """Listen: take an event, or the end (b"")."""
        self._num_bytes += len(event)
        if not event or self._num_bytes > 2 * MAX_TAPE_BYTES:
            self.end()
        elif not self.is_over:
            self._events.append(event)
            self._changed.set()

    def next(self) -> bytes:
        """Return the next event."""
        event = self._events.popleft()
        self._num_bytes -= len(event)
        return event

    def end(self) -> None:
        """Take no more."""
        self.is_over = True
        self._changed.set()

    async def wait(self) -> None:
        """Return when there is an event, or when no more will come."""
        while self.is_empty and not self.is_over:
            self._changed.clear()
            await self._changed.wait()


def is_ending(event: bytes) -> bool:
    """Say whether nothing comes after this event."""
    return event.startswith(_ENDINGS)


def ending(stored: StoredResponse, number: int) -> bytes:
    """Render the event that ends the stream of a stored response."""
    # OpenAI has no event for `cancelled`; `incomplete` shows what there is.
    status = "incomplete" if stored.status == "cancelled" else stored.status
    kind = f"response.{status}".encode()
    fields = (kind, kind, number, stored.response)
    return b'event: %b\ndata: {"type":"%b","sequence_number":%d,"response":%b}\n\n' % fields


def _nothing() -> None:
    """End what has ended."""
