"""I/O. A TCP proxy that misbehaves: delays, swallows, cuts, or makes garbage of what passes between two processes."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

READ_BYTES = 65536


class FaultProxy:
    """Listens on `url` for one server. What it does can be changed at any time; connections see it at once."""

    def __init__(self, port: int, host: str) -> None:
        self.port = port
        """Of the server."""
        self._host = host
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._rng = random.Random(0)
        self._flows = asyncio.Event()
        self._flows.set()
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.garbage_in: int | None = None
        """Replace the bytes from the server after so many more by noise, once."""
        self.num_connections = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://{self._host}:{self._server.sockets[0].getsockname()[1]}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, self._host, 0)

    def swallow(self) -> None:
        """Let nothing through, and tell nobody: what is sent stays in the buffers."""
        self._flows.clear()

    def flow(self) -> None:
        """Let everything through again."""
        self._flows.set()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        await self._flows.wait()
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to_writer}
        await asyncio.gather(self._pump(reader, to_writer, False), self._pump(to_reader, writer, True))
        self._writers -= {writer, to_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_from_server: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if self.delay_s or self.jitter_s:
                    await asyncio.sleep(self.delay_s + self.jitter_s * self._rng.uniform(-1, 1))
                await self._flows.wait()
                if is_from_server and self.garbage_in is not None:
                    data, self.garbage_in = self._rng.randbytes(len(data)), None
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def fault_proxy(port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[FaultProxy]:
    """Stand between processes and the server on `port`, which may be told later, while the context is open."""
    proxy = FaultProxy(port, host)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
