"""I/O. One request as it comes in, and its response, written to the connection's transport.

A token must not cost a task or a queue: a stream writes to the transport itself, and says when it is complete.
"""

import asyncio
import http
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Protocol

import msgspec

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}


class Wire(Protocol):
    """The connection of an exchange."""

    transport: asyncio.Transport
    is_write_paused: bool

    def resume_reading(self) -> None:
        """Read on, if much of a body that nobody took stopped that."""

    def response_ended(self) -> None:
        """The response is complete: the next request may be served."""


class Exchange(msgspec.Struct, eq=False):
    """One request and its response. Whoever handles it is alone to read and to write."""

    _wire: Wire
    _transport: asyncio.Transport
    method: str
    path: str
    """Decoded."""
    query: bytes
    headers: Mapping[bytes, bytes]
    """By lower-case name; the first of those with the same name."""
    limit_bytes: int
    """So much of a stream may wait for a client that does not read."""
    expects_continue: bool
    """The client sends its body when it is told to."""
    is_chunked: bool
    """The response may be of unknown length."""
    keeps_alive: bool
    """The connection may serve another request."""
    _body: bytes = b""
    _waiter: asyncio.Future[None] | None = None
    has_arrived: bool = False
    """All of the body came."""
    has_begun: bool = False
    """The head of the response was made."""
    is_finished: bool = False
    """The response is complete."""
    is_disconnected: bool = False
    on_lost: Callable[[], None] | None = None
    """Called at most once, when the client is gone before the response is complete."""
    late_headers: Callable[[], Iterable[tuple[bytes, bytes]]] | None = None
    """Asked for headers of any response, stream or not, when it begins."""

    @property
    def is_lost(self) -> bool:
        """The client is gone."""
        return self.is_disconnected or self._transport.is_closing()

    # The request

    @property
    def is_read(self) -> bool:
        """All of the body came, and was taken."""
        return self.has_arrived and not self._body

    async def receive(self) -> bytes:
        """Return what came of the body since the last call, waiting for some; nothing at its end, or without client."""
        if self.expects_continue:
            self.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._body and not self.has_arrived and not self.is_lost:
            self._wire.resume_reading()
            await self._wait()
        if self.is_lost:
            return b""
        body, self._body = self._body, b""
        return body

    def feed(self, data: bytes) -> int:
        """Take the next bytes of the body; return how many wait."""
        if self.is_finished:
            return 0
        self._body += data
        self.wake()
        return len(self._body)

    def complete(self) -> None:
        """All of the body came."""
        self.has_arrived = True
        self.wake()

    # The response

    def begin(self, status: int, headers: bytes) -> bytes:
        """Begin a response of unknown length and return its head, to be written; `headers` are whole lines."""
        if self.is_chunked:
            headers += b"transfer-encoding: chunked\r\n"
        else:
            self.keeps_alive = False
        return self.head(status, headers)

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Write a whole response at once."""
        self.write_whole(status, headers, body)
        self.finish()

    def write_whole(self, status: int, headers: bytes, body: bytes) -> None:
        """Write a whole response that is not complete before `finish`."""
        head = self.head(status, b"%bcontent-length: %d\r\n" % (headers, len(body)))
        self._transport.write(head if self.method == "HEAD" else head + body)

    def head(self, status: int, headers: bytes) -> bytes:
        """Begin a response and return its head, to be written; `headers` are whole lines that tell its length."""
        self.has_begun = True
        self.expects_continue = False
        lines = _date_line(int(time.time()))
        if self.late_headers is not None:
            lines += b"".join([b"%b: %b\r\n" % header for header in self.late_headers()])
        if not self.keeps_alive:
            lines += b"connection: close\r\n"
        return b"%b%b%b\r\n" % (STATUS_LINES[status], headers, lines)

    def write(self, data: bytes) -> None:
        """Write bytes of the response as they go over the wire; a client that does not read is cut off."""
        self._transport.write(data)
        if self._wire.is_write_paused and self._transport.get_write_buffer_size() > self.limit_bytes:
            self.abort()

    async def drain(self) -> None:
        """Wait for a client that does not read."""
        while self._wire.is_write_paused and not self.is_lost:
            await self._wait()

    async def send(self, data: bytes) -> None:
        """Write, and wait for a client that does not read; what it does not get is dropped."""
        if not self.is_lost:
            self._transport.write(data)
            await self.drain()

    def finish(self) -> None:
        """Say that the response is complete: the connection may serve its next request."""
        if self.is_finished or self.is_lost:
            return
        self.on_lost = None
        self.is_finished = True
        if self.keeps_alive:
            self._wire.response_ended()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection, unsent bytes included; `on_lost` follows."""
        self._transport.abort()
        self.lose()

    def lose(self) -> None:
        """Tell the owner of the response that the client is gone."""
        self.is_disconnected = True
        self.wake()
        lost, self.on_lost = self.on_lost, None
        if lost is not None:
            lost()

    # Waiting: for more of the body, for room to write, for the end

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Something changed that the handler may wait for."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@lru_cache(maxsize=1)
def _date_line(now: int) -> bytes:
    return f"date: {formatdate(now, usegmt=True)}\r\n".encode()
