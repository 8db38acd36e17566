"""I/O. The socket of a frontend and the HTTP server on it: from the first connection that it takes to the last."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import uvicorn

from bus.errors import BadConfig

BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: `bus.lifecycle` has them."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`; when cancelled, leave no socket behind."""
        try:
            await super().serve(sockets)
        finally:
            self._close_servers()
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    async def stop_listening(self, listener: socket.socket) -> None:
        """Take no more connections than those which wait already: the kernel resets these when the socket closes."""
        if not hasattr(self, "servers"):
            return
        loop = asyncio.get_running_loop()
        waiting: list[socket.socket] = []
        with suppress(OSError):
            while len(waiting) < BACKLOG:
                waiting.append(listener.accept()[0])
        self._close_servers()
        for connection in waiting:
            with suppress(OSError):
                await loop.connect_accepted_socket(self._make_protocol, connection, ssl=self.config.ssl)

    def _make_protocol(self) -> asyncio.Protocol:
        protocol = cast("Any", self.config.http_protocol_class)
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    def _close_servers(self) -> None:
        for server in getattr(self, "servers", ()):
            server.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, then say so."""
        await super().startup(sockets)
        self._on_started()


class CannotListen(BadConfig):
    """The port cannot be had; `hint` is the next command to type."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {error.strerror or error}")
        self.hint = f"--port {port + 1}, or see who has this one: ss -ltnp 'sport = :{port}'"


def listen(host: str, port: int, *, shares_port: bool = False) -> socket.socket:
    """Have the port, with others if all of them share it; raise `BadConfig` when it cannot be had.

    The kernel spreads new connections over those that listen. Alone, who connects before the server is there waits
    for it; among others, nobody is to wait while they serve, and the server listens when it is there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            if not shares_port:
                listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise CannotListen(host, port, error) from error
    listener.setblocking(False)
    return listener
