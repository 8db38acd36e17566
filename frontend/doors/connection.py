"""I/O. One connection of a client: HTTP/1.1 as httptools reads it, within bounds on what a client sends.

uvicorn's server makes one for each connection that it takes, asks it to `shutdown`, and waits for those that are in
`connections` and `tasks` of its state; what that relies on is held by `tests/integration/frontend/test_connection.py`.
Its own protocol takes some 20 us of CPU more a request: an ASGI scope, events, a task's wrappers, a timer each time.
"""

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.server import ServerState

from bus.errors import BuswayError
from frontend.anthropic.errors import anthropic_envelope, to_anthropic
from frontend.doors.exchange import STATUS_LINES, Exchange
from frontend.errors import BadHttp, ClientTooSlow, HeadersTooLarge, TooManyConnections, answer_for, envelope

Handle = Callable[[Exchange], Coroutine[Any, Any, None]]
"""Answers one request."""

BODY_AHEAD_BYTES = 64 * 2**10
"""What may wait of a body that its handler does not take; then nothing more is read."""
_ANTHROPIC_PATH = b"/v1/messages"


class HttpLimits(msgspec.Struct, frozen=True):
    """What one client may take of a connection."""

    header_bytes: int
    """Request line and headers together."""
    slow_client_bytes: int
    """Unsent bytes after which a client that does not read is cut off."""
    connections: int
    """Open ones, of all clients together."""
    num_headers: int = 128
    header_s: float = 5.0
    """Time for request line and headers to arrive, from their first byte on."""
    request_s: float = 30.0
    """Time for a request to arrive; a larger body goes on as long as `progress_bytes` come in each such time."""
    progress_bytes: int = 2**20
    idle_s: float = 75.0
    """Longer than proxies (60 s) and clients keep an idle connection: they close it, not we under their request."""


class Connection(asyncio.Protocol):
    """Reads requests and has them handled, one after the other; what is no request is answered here."""

    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: HttpLimits,
        handle: Handle,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = cast("set[Connection]", server_state.connections)
        self._tasks = server_state.tasks
        self._limits = limits
        self._handle = handle
        self._parser: Any = None
        self._read_anew()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._arriving: Exchange | None = None
        """The request of which the head came last."""
        self._running: Exchange | None = None
        """The request that is being answered."""
        self._pipeline: deque[Exchange] = deque()
        """Requests that came meanwhile."""
        self.is_write_paused = False
        self._is_read_paused = False
        self._num_header_bytes = 0
        self._is_in_headers = True
        self._refusal: BuswayError | None = None
        self._arrival_timer: asyncio.TimerHandle | None = None
        self._is_arriving = False
        self._is_head_timed = False
        self._num_arrived = 0
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        if len(self._connections) > self._limits.connections:
            self._refuse(TooManyConnections(f"{self._limits.connections} connections are open here.", delay_s=1.0))
            return
        self._arm_arrival_timer(self._limits.request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._connections.discard(self)
        self._disarm_arrival_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        running, self._running = self._running, None
        self._arriving = self._parser = None
        self._pipeline.clear()
        if running is not None:
            running.lose()

    def eof_received(self) -> None:
        """Close: who sends no more takes no answer either."""

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._refusal is not None:
            return
        self._num_arrived += len(data)
        if self._is_in_headers:
            self._num_header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # To nothing that is known here, and the parser takes what follows, a body too, for no HTTP any more.
            head = self._head_without_upgrade()
            self._read_anew()
            self.data_received(head + data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(BadHttp("Invalid HTTP request received."))
            return
        self._time_arrival()
        # A header that never ends is told to nobody before it does: only the bytes count.
        if self._is_in_headers and self._num_header_bytes > self._limits.header_bytes:
            self._refuse(self._too_many_headers())

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """The client has read."""
        self.is_write_paused = False
        if self._running is not None:
            self._running.wake()

    # What the parser tells

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_arriving = True
        self._url = b""
        self._headers = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        """A part of the request line came."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Have the request handled, its body follows; in its turn if another one is not answered yet."""
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT" or self._running is not None:
                raise BadHttp("No proxy is here, and nobody wishes for a protocol before the last answer is there.")
            return
        self._is_in_headers = False
        if self._is_head_timed:
            self._is_head_timed = False
            self._disarm_arrival_timer()
        # What arrived may hold a part of the body too: it is counted exactly only where it could be too much.
        is_long = self._num_header_bytes > self._limits.header_bytes
        self._num_header_bytes = 0
        if len(self._headers) > self._limits.num_headers or (
            is_long and self._header_size() > self._limits.header_bytes
        ):
            self._refuse(self._too_many_headers())
            raise self._too_many_headers()
        parser = self._parser
        path, query = _split(self._url)
        headers = dict(reversed(self._headers))
        self._headers.clear()
        may_chunk = parser.get_http_version() == "1.1"
        exchange = Exchange(
            self,
            self.transport,
            method=parser.get_method().decode("ascii"),
            path=path,
            query=query,
            headers=headers,
            limit_bytes=self._limits.slow_client_bytes,
            expects_continue=self._expects_continue,
            is_chunked=may_chunk,
            keeps_alive=may_chunk and parser.should_keep_alive(),
        )
        self._arriving = exchange
        if self._running is None:
            self._start(exchange)
        else:
            self._pause_reading()
            self._pipeline.append(exchange)

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        if self._arriving is not None and self._arriving.feed(body) > BODY_AHEAD_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._parser.should_upgrade():
            return
        self._is_arriving = False
        self._disarm_arrival_timer()
        self._is_in_headers = True
        if self._arriving is not None:
            self._arriving.complete()
            self._arriving = None
        if self._running is None:
            self._rest()  # the answer was there before the end of the body

    def _read_anew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        # Who says that it closes after this request may still send bytes: they are nobody's.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_upgrade(self) -> bytes:
        """Return the head that came, without the wish to go on in another protocol (Java's client has it always)."""
        self._num_header_bytes = 0
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self._parser.get_method(), self._url, version)]
        for name, value in self._headers:
            if name == b"connection":
                lines += [b"connection: close\r\n"] if b"close" in value.lower() else []
            elif name not in (b"upgrade", b"http2-settings"):
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join(lines) + b"\r\n"

    # Requests, one after the other

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        task = self._loop.create_task(self._handle(exchange))
        self._tasks.add(task)
        task.add_done_callback(partial(self._handled, exchange))

    def _handled(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not exchange.is_finished:
            # A response that is cut short is all that can be told.
            self.transport.abort()

    def response_ended(self) -> None:
        """Serve the next request, or wait for one."""
        self._running = None
        if self.transport.is_closing():
            return
        following = self._pipeline.popleft() if self._pipeline else None
        if not self._pipeline:
            self.resume_reading()  # no sooner: what one read brings of small requests may be thousands
        if following is not None:
            self._start(following)
        else:
            self._rest()

    def shutdown(self) -> None:
        """Take no more requests; the server asks for it when it ends."""
        if self._running is None:
            self.transport.close()
        else:
            self._running.keeps_alive = False

    def _rest(self) -> None:
        """Nothing is to be done. One timer does for many such times: it looks when the last one began."""
        self._idle_since = self._loop.time()
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(self._limits.idle_s, self._look_idle)

    def _look_idle(self) -> None:
        """Close an idle connection; one whose client has not even read its last answer is cut."""
        self._idle_timer = None
        if self._running is not None or self._is_arriving:
            return
        left_s = self._idle_since + self._limits.idle_s - self._loop.time()
        if left_s > 0:
            self._idle_timer = self._loop.call_later(left_s, self._look_idle)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def resume_reading(self) -> None:
        """Read on, if much of a body that nobody took stopped that."""
        if self._is_read_paused:
            self._is_read_paused = False
            self.transport.resume_reading()
            self._time_arrival()

    def _pause_reading(self) -> None:
        if not self._is_read_paused:
            self._is_read_paused = True
            self._disarm_arrival_timer()
            self.transport.pause_reading()

    # What is refused

    def _refuse(self, error: BuswayError) -> None:
        """Answer outside of any request and close; inside a response that has begun only closing is left."""
        if self._refusal is not None:
            return
        self._refusal = error
        if self._running is not None and self._running.has_begun:
            self.transport.abort()
            return
        answer = answer_for(error)
        if self._url.startswith(_ANTHROPIC_PATH):
            answer = to_anthropic(answer)
            body = anthropic_envelope(answer.error, "")
        else:
            body = envelope(answer.error)
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
        retry = b"" if answer.retry_after_s is None else b"retry-after: %d\r\n" % answer.retry_after_s
        self.transport.write(head % (STATUS_LINES[answer.status], len(body), retry) + body)
        self.transport.close()

    def _header_size(self) -> int:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def _too_many_headers(self) -> BuswayError:
        limits = self._limits
        return HeadersTooLarge(
            f"The request line and headers may take {limits.header_bytes} bytes, and be {limits.num_headers}."
        )

    def _time_arrival(self) -> None:
        """Give the rest of a request its time; none passes while nothing is read."""
        if not self._is_arriving or self._is_read_paused:
            return
        if self._is_in_headers and not self._is_head_timed:
            self._is_head_timed = True
            self._disarm_arrival_timer()
        if self._arrival_timer is None:
            limits = self._limits
            self._arm_arrival_timer(limits.header_s if self._is_in_headers else limits.request_s)

    def _arm_arrival_timer(self, wait_s: float) -> None:
        self._num_arrived = 0
        self._arrival_timer = self._loop.call_later(wait_s, self._give_up_waiting, wait_s)

    def _disarm_arrival_timer(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _give_up_waiting(self, waited_s: float) -> None:
        self._arrival_timer = None
        if self._num_arrived >= self._limits.progress_bytes and not self._is_in_headers:
            self._arm_arrival_timer(waited_s)
            return
        self._refuse(ClientTooSlow(f"The request did not arrive within {waited_s:g} s."))


def _split(url: bytes) -> tuple[str, bytes]:
    """Return the decoded path and the query of a request line; raise what the parser takes for no HTTP."""
    if url.startswith(b"/"):
        raw, _, query = url.partition(b"?")
    else:
        parsed = httptools.parse_url(url)
        raw, query = parsed.path or b"/", parsed.query or b""
    path = raw.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, query
