"""The seam with uvicorn: what `frontend.doors.connection` relies on, and what it promises."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from frontend.doors.connection import EXTENSION, Exchange, HttpLimits, StreamingProtocol
from frontend.doors.server import Server, listen

pytestmark = pytest.mark.anyio

LIMITS = HttpLimits(header_bytes=1000, slow_client_bytes=100_000, connections=100, header_s=0.2, request_s=0.2)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def serving(handler: Callable[[Exchange], Awaitable[None]], limits: HttpLimits = LIMITS) -> AsyncIterator[int]:
    """Serve with our protocol; yield the port."""
    async with running(handler, limits) as (_, listener):
        yield listener.getsockname()[1]


@asynccontextmanager
async def running(
    handler: Callable[[Exchange], Awaitable[None]], limits: HttpLimits = LIMITS
) -> AsyncIterator[tuple[Server, socket.socket]]:

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler(scope["extensions"][EXTENSION])

    protocol = cast("Any", partial(StreamingProtocol, limits=limits))
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, log_level="critical")
    started = anyio.Event()
    server = Server(config, started.set)
    listener = listen("127.0.0.1", 0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await started.wait()
        yield server, listener
        tasks.cancel_scope.cancel()


async def read_all(stream: anyio.abc.SocketStream) -> bytes:
    data = b""
    with anyio.fail_after(5):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


def test_uvicorn_is_the_one_that_this_was_written_for() -> None:
    assert version("uvicorn").startswith("0.54.")
    cycle = inspect.getsource(RequestResponseCycle)
    for name in ("response_started", "response_complete", "chunked_encoding", "default_headers", "keep_alive"):
        assert f"self.{name}" in cycle
    assert "self._start_asgi_task(self.cycle, app)" in inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "self._start_asgi_task(cycle, app)" in inspect.getsource(HttpToolsProtocol.on_response_complete)


async def test_who_has_connected_before_the_end_is_answered_and_nobody_after() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.write(exchange.begin(200, b"") + b"2\r\nhi\r\n0\r\n\r\n")
        exchange.finish()

    async with running(handle) as (server, listener):
        loop, address = asyncio.get_running_loop(), listener.getsockname()
        with closing(socket.create_connection(address)) as first, closing(socket.create_connection(address)) as second:
            # Nothing of this loop ran meanwhile: both are with the kernel.
            await server.stop_listening(listener)
            for waiting in (first, second):
                waiting.setblocking(False)
                await loop.sock_sendall(waiting, GET)
                with anyio.fail_after(5):
                    assert (await loop.sock_recv(waiting, 100)).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address)


async def test_a_response_written_to_the_transport_leaves_the_connection_usable() -> None:
    async def handle(exchange: Exchange) -> None:
        head = exchange.begin(200, b"x-a: b\r\n")
        exchange.write(head + b"2\r\nhi\r\n0\r\n\r\n")
        exchange.finish()
        assert exchange.is_finished

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        for _ in range(3):
            await stream.send(GET)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += await stream.receive()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\nx-a: b\r\ntransfer-encoding: chunked\r\n")


@pytest.mark.parametrize("request_head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"])
async def test_the_connection_closes_when_the_client_wants_it(request_head: bytes) -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"", b"body")

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request_head)
        answer = await read_all(stream)
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nbody")


async def test_the_owner_of_a_response_learns_at_once_that_the_client_left() -> None:
    lost = anyio.Event()
    waiting = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        exchange.on_lost = lost.set
        waiting.set()
        await lost.wait()

    async with serving(handle) as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(GET)
            await waiting.wait()
        with anyio.fail_after(2):
            await lost.wait()


async def test_a_client_that_does_not_read_is_cut_at_the_limit() -> None:
    lost = anyio.Event()
    written = 0

    async def handle(exchange: Exchange) -> None:
        nonlocal written
        exchange.on_lost = lost.set
        exchange.write(exchange.begin(200, b""))
        while not lost.is_set() and written < 100_000_000:
            exchange.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            written += 10_000
            await anyio.lowlevel.checkpoint()

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(GET)
        with anyio.fail_after(5):
            await lost.wait()
    assert written < 100_000_000


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"])
async def test_a_request_that_does_not_arrive_is_given_up(data: bytes) -> None:
    async def handle(exchange: Exchange) -> None:
        await anyio.sleep_forever()

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        if data:
            await stream.send(data)
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"client_too_slow"' in answer


async def test_a_head_that_comes_byte_by_byte_is_given_up_in_its_own_time() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"", b"ok")

    async def trickle(stream: anyio.abc.SocketStream) -> None:
        for byte in b"GET / HTTP/1.1\r\nx: " + b"y" * 500:
            await stream.send(bytes([byte]))
            await anyio.sleep(0.02)

    limits = msgspec.structs.replace(LIMITS, request_s=60.0)
    async with serving(handle, limits) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(GET)
        answer = b""
        while not answer.endswith(b"ok"):
            answer += await stream.receive()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trickle, stream)
            assert b" 408 " in await read_all(stream)
            tasks.cancel_scope.cancel()


async def test_a_large_body_may_take_as_long_as_it_makes_progress() -> None:
    has_come = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        await has_come.wait()
        exchange.respond(200, b"", b"ok")

    limits = msgspec.structs.replace(LIMITS, request_s=0.1, progress_bytes=100)
    async with serving(handle, limits) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 10000\r\n\r\n")
        for _ in range(40):  # over four times the time for a request
            await stream.send(b"x" * 250)
            await anyio.sleep(0.01)
        has_come.set()
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/messages HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc", b"408"),
        (b"POST /v1/messages HTTP/1.1\r\nx: " + b"y" * 2000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_errors_of_the_connection_are_anthropics_on_its_paths(head: bytes, status: bytes) -> None:
    async def handle(exchange: Exchange) -> None:
        await anyio.sleep_forever()

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(head)
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["type"] == "error"


async def test_bytes_that_are_no_http_do_not_end_up_inside_a_response() -> None:
    begun = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        lost = anyio.Event()
        exchange.on_lost = lost.set
        exchange.write(exchange.begin(200, b"") + b"2\r\nhi\r\n")
        begun.set()
        await lost.wait()

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(GET)
        await begun.wait()
        await stream.send(b"\x00\x01\x02 garbage\r\n\r\n")
        answer = await read_all(stream)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"400" not in answer.split(b"\r\n")[0]
