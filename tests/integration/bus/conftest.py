"""Peers that speak raw protocol: a client that sends what no library would, a server that says what it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pytest

INFO = b'INFO {"server_id":"S1","version":"2.15.0","headers":true,"max_payload":1048576,"proto":1}\r\n'


async def send_raw(url: str, data: bytes) -> None:
    """Send protocol bytes as they are, and wait until the server has processed them."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n' + data + b"PING\r\n")
        while (line := await reader.readline()) and not line.startswith(b"PONG"):
            assert not line.startswith(b"-ERR"), line
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def raw() -> Callable[..., object]:
    return send_raw


class ScriptedServer:
    """Greets, answers PING if it is told to, notes every byte, and can say anything to its clients."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.answers_pings = True
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def num_connections(self) -> int:
        return len(self.received)

    def say(self, data: bytes) -> None:
        """Send to the connection that came last."""
        self._writers[-1].write(data)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.received)
        self.received.append(b"")
        self._writers.append(writer)
        writer.write(INFO)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while line := await reader.readline():
                self.received[number] += line
                if line == b"PING\r\n" and (self.answers_pings or self.received[number].count(b"PING\r\n") == 1):
                    writer.write(b"PONG\r\n")
        writer.close()


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"nats://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        for writer in server._writers:
            writer.close()
