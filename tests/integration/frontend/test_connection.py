"""Connections and exchanges: what they rely on in uvicorn's server, and what they promise."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest
import uvicorn

from frontend.doors.connection import Connection, Handle, HttpLimits
from frontend.doors.exchange import Exchange
from frontend.doors.server import Server, listen

pytestmark = pytest.mark.anyio

LIMITS = HttpLimits(header_bytes=1000, slow_client_bytes=100_000, connections=100, header_s=30.0, request_s=30.0)
HASTY = msgspec.structs.replace(LIMITS, header_s=0.2, request_s=0.2)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def serving(handle: Handle, limits: HttpLimits = LIMITS) -> AsyncIterator[int]:
    """Serve with our protocol; yield the port."""
    async with running(handle, limits) as (_, listener):
        yield listener.getsockname()[1]


@asynccontextmanager
async def running(handle: Handle, limits: HttpLimits = LIMITS) -> AsyncIterator[tuple[Server, socket.socket]]:
    """Serve as `serving` does; yield server and socket."""
    protocol = cast("Any", partial(Connection, limits=limits, handle=handle))
    config = uvicorn.Config(
        cast("Any", handle), http=protocol, ws="none", lifespan="off", log_config=None, log_level="critical"
    )
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
    with anyio.fail_after(30):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


def test_uvicorn_is_the_one_that_this_was_written_for() -> None:
    assert version("uvicorn").startswith("0.54.")
    server = inspect.getsource(uvicorn.Server)
    for reliance in ("connection.shutdown()", "self.server_state.connections", "self.server_state.tasks", "t.cancel("):
        assert reliance in server


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
                with anyio.fail_after(30):
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
        with anyio.fail_after(30):
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
        with anyio.fail_after(30):
            await lost.wait()
    assert written < 100_000_000


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"])
async def test_a_request_that_does_not_arrive_is_given_up(data: bytes) -> None:
    async def handle(exchange: Exchange) -> None:
        await anyio.sleep_forever()

    async with serving(handle, HASTY) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
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

    limits = msgspec.structs.replace(HASTY, request_s=60.0)
    async with serving(handle, limits) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(GET)
        answer = b""
        while not answer.endswith(b"ok"):
            answer += await stream.receive()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trickle, stream)
            assert b" 408 " in await read_all(stream)
            tasks.cancel_scope.cancel()


async def test_a_large_body_may_take_as_long_as_it_makes_progress(undisturbed: Any) -> None:
    await undisturbed(send_a_large_body, 0.05)


async def send_a_large_body() -> None:
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

    async with serving(handle, HASTY) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
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


async def read_until(stream: anyio.abc.SocketStream, end: bytes) -> bytes:
    data = b""
    with anyio.fail_after(30):
        while not data.endswith(end):
            data += await stream.receive()
    return data


async def test_requests_that_come_at_once_are_answered_one_after_the_other() -> None:
    running_now = 0

    async def handle(exchange: Exchange) -> None:
        nonlocal running_now
        running_now += 1
        assert running_now == 1
        body = b""
        while data := await exchange.receive():
            body += data
            await anyio.lowlevel.checkpoint()
        running_now -= 1
        exchange.respond(200, b"", b"%b?%b=%b" % (exchange.path.encode(), exchange.query, body))

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        requests = [
            b"POST /%d%%20?q HTTP/1.1\r\nContent-Length: 2\r\n\r\n%d%d" % (number, number, number)
            for number in range(4)
        ]
        last = b"POST http://h/5 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\n5\r\n0\r\n\r\n"
        await stream.send(b"".join(requests) + last + GET)
        answer = await read_all(stream)
    assert [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")] == [
        b"",
        *[b"/%d ?q=%d%d" % (number, number, number) for number in range(4)],
        b"/5?=5",
    ]


async def test_no_more_requests_are_read_while_some_wait() -> None:
    num_requests = 40_000
    most = 0

    async def handle(exchange: Exchange) -> None:
        nonlocal most
        (connection,) = server.server_state.connections
        most = max(most, len(cast("Connection", connection)._pipeline))
        await anyio.lowlevel.checkpoint()
        exchange.respond(200, b"", b"")

    async with running(handle) as (server, listener), await anyio.connect_tcp(*listener.getsockname()) as stream:
        await stream.send(GET)
        num_bytes = len(await stream.receive())

        async def read() -> None:
            left = num_requests * num_bytes
            while left:
                left -= len(await stream.receive())

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await stream.send(GET * num_requests)
    assert most <= 256 * 2**10 // len(GET)


async def test_no_time_passes_for_a_request_that_is_not_read(undisturbed: Any) -> None:
    await undisturbed(send_what_is_not_read, 0.05)


async def send_what_is_not_read() -> None:
    goes_on = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        if exchange.path == "/slow":
            await goes_on.wait()
        exchange.respond(200, b"", exchange.path.encode())

    request = b"POST /%b HTTP/1.1\r\nContent-Length: 200000\r\n\r\n"
    async with serving(handle, HASTY) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"GET /slow HTTP/1.1\r\n\r\n" + request % b"next" + bytes(1000))
        await stream.send(bytes(1000))
        with anyio.move_on_after(2 * max(HASTY.header_s, HASTY.request_s)):
            await stream.receive()
        goes_on.set()
        await read_until(stream, b"/slow")
        await stream.send(bytes(198_000))
        assert (await read_until(stream, b"/next")).startswith(b"HTTP/1.1 200 ")


async def test_a_body_is_read_no_faster_than_it_is_taken() -> None:
    goes_on = anyio.Event()
    taken: list[int] = []

    async def handle(exchange: Exchange) -> None:
        await goes_on.wait()
        while data := await exchange.receive():
            taken.append(len(data))
        exchange.respond(200, b"", b"ok")

    size = 50_000_000
    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:

        async def upload() -> None:
            await stream.send(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // 1_000_000):
                await stream.send(bytes(1_000_000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload)
            with anyio.move_on_after(0.1):
                await anyio.sleep_forever()
            goes_on.set()
            assert (await read_until(stream, b"ok")).startswith(b"HTTP/1.1 200")
    assert sum(taken) == size
    assert max(taken) < 1_000_000


async def test_a_client_that_waits_to_be_told_is_told_when_its_body_is_wanted() -> None:
    async def handle(exchange: Exchange) -> None:
        body = await exchange.receive() if exchange.path == "/wanted" else b"unread"
        exchange.respond(200, b"", body)

    head = b"POST /%b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(head % b"wanted")
        assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send(b"body")
        assert (await read_until(stream, b"body")).startswith(b"HTTP/1.1 200 ")
        await stream.send(head % b"refused")
        assert (await read_until(stream, b"unread")).startswith(b"HTTP/1.1 200 ")


async def test_what_is_sent_waits_for_its_reader(eventually: Any) -> None:
    num_sent = 0

    async def handle(exchange: Exchange) -> None:
        nonlocal num_sent
        await exchange.send(exchange.head(200, b"content-length: 50000000\r\n"))
        for _ in range(50):
            await exchange.send(bytes(1_000_000))
            num_sent += 1
        exchange.finish()

    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(GET)
        await eventually(lambda: num_sent > 0)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert num_sent < 40
        left = 50_000_000 + len((await stream.receive(1_000_000)).partition(b"\r\n\r\n")[0]) + 4
        while num_sent < 50:
            left -= len(await stream.receive(1_000_000))
        assert left < 50_000_000


async def test_an_idle_connection_is_closed_and_one_that_is_used_is_not(undisturbed: Any) -> None:
    await undisturbed(use_and_leave_idle, 0.05)


async def use_and_leave_idle() -> None:
    async def handle(exchange: Exchange) -> None:
        if exchange.path == "/slow":
            await anyio.sleep(0.3)
        exchange.respond(200, b"", b"ok")

    limits = msgspec.structs.replace(LIMITS, idle_s=0.1)
    async with serving(handle, limits) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        for path in (b"/", b"/slow", b"/"):
            await stream.send(b"GET %b HTTP/1.1\r\n\r\n" % path)
            await read_until(stream, b"ok")
        await stream.send(b"\r\n")  # is no request
        assert await read_all(stream) == b""


async def test_a_handler_that_fails_ends_its_connection_and_no_other() -> None:
    async def handle(exchange: Exchange) -> None:
        if exchange.path == "/bad":
            return
        exchange.respond(200, b"", b"ok")

    async with serving(handle) as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"GET /bad HTTP/1.1\r\n\r\n")
            assert await read_all(stream) == b""
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(GET)
            await read_until(stream, b"ok")


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_wish_for_another_protocol_changes_nothing(is_cut: bool) -> None:
    async def handle(exchange: Exchange) -> None:
        body = b""
        while data := await exchange.receive():
            body += data
        exchange.respond(200, b"", exchange.headers.get(b"x", b"") + body + exchange.headers.get(b"upgrade", b""))

    wishes = (
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nUpgrade: h2c\r\nX: y\r\n"
    )
    first = b"POST / HTTP/1.1\r\n" + wishes + b"Content-Length: 4\r\n\r\nbody"
    second = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + wishes + b"\r\n2\r\nab\r\n0\r\n\r\n"
    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        for data, end in ((first, b"\r\n\r\nybody"), (second, b"\r\n\r\nyab")):
            for piece in (data[at : at + 7] for at in range(0, len(data), 7)) if is_cut else (data,):
                await stream.send(piece)
                await anyio.lowlevel.checkpoint()
            assert (await read_until(stream, end)).startswith(b"HTTP/1.1 200 ")
        await stream.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")


async def test_many_wishes_at_once_are_refused() -> None:
    async def handle(exchange: Exchange) -> None:
        await anyio.sleep_forever()

    wish = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    async with serving(handle) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(wish * 2000)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
