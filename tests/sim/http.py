"""I/O (in memory). HTTP between clients and frontends without sockets: the frontend's own protocol reads and writes."""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

import httptools

from tests.sim.loop import MemoryServer, SimLoop

WIRE_S = 0.0005
"""How long bytes are on their way."""


class Refused(Exception):
    """Nobody listens."""


class Transport(asyncio.Transport):
    """The frontend's end of a connection; what it writes reaches the client after `WIRE_S`, in order."""

    def __init__(self, loop: SimLoop, client: "Client", context: Context) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8000)})
        self.protocol: Any = None
        self.context = context
        self._loop = loop
        self._client = client
        self._is_closing = False

    def deliver(self, data: bytes) -> None:
        """Hand over what the client sent, unless the connection is gone."""
        if not self._is_closing:
            self.protocol.data_received(data)

    def write(self, data: Any) -> None:
        """Send to the client, unless the connection is gone."""
        if not self._is_closing:
            self._client.hear(bytes(data))

    def is_closing(self) -> bool:
        """Whether nothing is written any more."""
        return self._is_closing

    def close(self) -> None:
        """End the connection in order."""
        if not self._is_closing:
            self._is_closing = True
            self._client.hear(b"")
            self._loop.call_soon(self.protocol.connection_lost, None, context=self.context)

    abort = close

    def get_write_buffer_size(self) -> int:
        """Return 0: clients read at once."""
        return 0

    def pause_reading(self) -> None:
        """Requests are small and sent whole."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""


class Client:
    """One request on a connection of its own. `on_body` gets the bytes of the answer's body, `on_end` is called once:
    True for a complete answer, False for a connection that ended before."""

    def __init__(self, on_body: Callable[[bytes], None], on_end: Callable[[bool], None]) -> None:
        self.status = 0
        self.is_complete = False
        self._on_body = on_body
        self._on_end = on_end
        self._loop: SimLoop = asyncio.get_running_loop()  # type: ignore[assignment]
        self._context = copy_context()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Transport | None = None
        self._server: MemoryServer | None = None
        self._is_over = False

    def send(self, process: str, method: str, path: str, body: bytes, kind: str = "application/json") -> None:
        """Ask a frontend; raise `Refused` when it does not listen."""
        server = self._loop.servers.get(process)
        if server is None or not server.is_open:
            raise Refused(process)
        self._server = server
        server.resets[self] = self.reset
        transport = self._transport = Transport(self._loop, self, server.context.copy())
        protocol = transport.protocol = transport.context.run(server.protocol_factory)
        head = f"{method} {path} HTTP/1.1\r\nhost: sim\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}"
        self._loop.call_soon(protocol.connection_made, transport, context=transport.context)
        data = f"{head}\r\n\r\n".encode() + body
        self._loop.call_later(WIRE_S, transport.deliver, data, context=transport.context)

    def leave(self) -> None:
        """Close the connection: the client wants no more."""
        self._end()
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()

    def reset(self) -> None:
        """The frontend is dead: its kernel ends the connection."""
        if not self._is_over:
            self._end()
            self._on_end(False)

    def hear(self, data: bytes) -> None:
        """Take bytes from the frontend, empty ones at their end."""
        self._loop.call_later(WIRE_S, self._read, data, context=self._context)

    def on_headers_complete(self) -> None:
        """Part of httptools' interface."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Part of httptools' interface."""
        self._on_body(data)

    def on_message_complete(self) -> None:
        """Part of httptools' interface."""
        self.is_complete = True
        self._end()
        self._on_end(True)

    def _end(self) -> None:
        self._is_over = True
        if self._server is not None:
            self._server.resets.pop(self, None)

    def _read(self, data: bytes) -> None:
        if self._is_over:
            return
        if data:
            self._parser.feed_data(data)
        else:
            self.reset()
