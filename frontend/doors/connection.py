"""I/O. The seam with uvicorn: its HTTP protocol, with a short cut from a request to the connection's transport.

A token must not cost a task, a queue or an ASGI `send`; so a stream writes to the transport itself, and tells uvicorn
when the response is complete. What this relies on in uvicorn 0.54 (pinned in pyproject.toml) is held by
`tests/integration/frontend/test_connection.py`: `_start_asgi_task`, the cycle's `response_started`,
`response_complete`, `chunked_encoding`, `default_headers`, `keep_alive`, `message_event` and `on_response`.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from bus.errors import BuswayError
from frontend.anthropic.errors import anthropic_envelope, to_anthropic
from frontend.errors import BadHttp, ClientTooSlow, HeadersTooLarge, TooManyConnections, answer_for, envelope

EXTENSION = "busway.exchange"
_ANTHROPIC_PATH = b"/v1/messages"


class Exchange:
    """One request and its response, with direct access to the connection below."""

    __slots__ = ("_cycle", "_limit_bytes", "_protocol", "_transport", "is_chunked", "late_headers", "on_lost")

    def __init__(self, protocol: "StreamingProtocol", cycle: RequestResponseCycle, limit_bytes: int) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._transport = cycle.transport
        self._limit_bytes = limit_bytes
        self.is_chunked = cycle.scope["http_version"] == "1.1"
        self.on_lost: Callable[[], None] | None = None
        """Called at most once, when the client is gone before the response is complete."""
        self.late_headers: Callable[[], Iterable[tuple[bytes, bytes]]] | None = None
        """Asked for headers of any response, stream or not, when it begins."""

    @property
    def is_lost(self) -> bool:
        """The client is gone."""
        return self._cycle.disconnected or self._transport.is_closing()

    @property
    def is_finished(self) -> bool:
        """The response is complete."""
        return self._cycle.response_complete

    def begin(self, status: int, headers: bytes) -> bytes:
        """Begin a response of unknown length and return its head, to be written; `headers` are whole lines."""
        if self.is_chunked:
            headers += b"transfer-encoding: chunked\r\n"
        else:
            self._cycle.keep_alive = False
        return self._head(status, headers)

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Write a whole response at once."""
        head = self._head(status, b"%bcontent-length: %d\r\n" % (headers, len(body)))
        self._transport.write(head if self._cycle.scope["method"] == "HEAD" else head + body)
        self.finish()

    def _head(self, status: int, headers: bytes) -> bytes:
        cycle = self._cycle
        cycle.response_started = True
        cycle.chunked_encoding = self.is_chunked
        cycle.waiting_for_100_continue = False
        lines = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
        if self.late_headers is not None:
            lines += b"".join(b"%b: %b\r\n" % header for header in self.late_headers())
        if not cycle.keep_alive:
            lines += b"connection: close\r\n"
        return b"%b%b%b\r\n" % (STATUS_LINE[status], headers, lines)

    def write(self, data: bytes) -> None:
        """Write bytes of the response as they go over the wire; a client that does not read is cut off."""
        self._transport.write(data)
        if self._protocol.is_write_paused and self._transport.get_write_buffer_size() > self._limit_bytes:
            self.abort()

    def finish(self) -> None:
        """Say that the response is complete: the connection may serve its next request."""
        cycle = self._cycle
        if cycle.response_complete or self.is_lost:
            return
        self.on_lost = None
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()

    def abort(self) -> None:
        """Cut the connection, unsent bytes included; `on_lost` follows."""
        self._transport.abort()
        self.lose()

    def lose(self) -> None:
        """Tell the owner of the response that the client is gone."""
        lost, self.on_lost = self.on_lost, None
        if lost is not None:
            lost()


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


class StreamingProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on what a client sends, JSON errors, and an `Exchange` in every scope."""

    def __init__(self, *args: Any, limits: HttpLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.url = b""
        self.is_write_paused = False
        self._limits = limits
        self._exchange: Exchange | None = None
        self._num_header_bytes = 0
        self._is_in_headers = True
        self._refusal: BuswayError | None = None
        self._arrival_timer: asyncio.TimerHandle | None = None
        self._is_arriving = False
        self._is_head_timed = False
        self._num_arrived = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > self._limits.connections:
            self._refuse(TooManyConnections(f"{self._limits.connections} connections are open here.", delay_s=1.0))
            return
        self._arm_arrival_timer(self._limits.request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_arrival_timer()
        super().connection_lost(exc)
        if self._exchange is not None:
            self._exchange.lose()
            self._exchange = None

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._num_arrived += len(data)
        if self._is_in_headers:
            self._num_header_bytes += len(data)
        super().data_received(data)
        if self._is_arriving and self._is_in_headers and not self._is_head_timed:
            self._is_head_timed = True
            self._disarm_arrival_timer()
            self._arm_arrival_timer(self._limits.header_s)
        elif self._is_arriving and self._arrival_timer is None:
            self._arm_arrival_timer(self._limits.request_s)
        # A header that never ends is told to nobody before it does: only the bytes count.
        if self._is_in_headers and self._num_header_bytes > self._limits.header_bytes:
            self._refuse(self._too_many_headers())

    def on_message_begin(self) -> None:
        self._is_arriving = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        if self._is_head_timed:
            self._is_head_timed = False
            self._disarm_arrival_timer()
        # What arrived may hold a part of the body too: it is counted exactly only where it could be too much.
        is_long = self._num_header_bytes > self._limits.header_bytes
        self._num_header_bytes = 0
        if len(self.headers) > self._limits.num_headers or (
            is_long and self._header_size() > self._limits.header_bytes
        ):
            self._refuse(self._too_many_headers())
            raise self._too_many_headers()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_arriving = False
        self._disarm_arrival_timer()
        self._is_in_headers = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        self.is_write_paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as uvicorn asks for it, in the envelope that all errors have."""
        self._refuse(BadHttp(msg))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client has not even read its last answer is cut."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._exchange = Exchange(self, cycle, self._limits.slow_client_bytes)
        cast("dict[str, Any]", cycle.scope)["extensions"] = {EXTENSION: self._exchange}
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: BuswayError) -> None:
        """Answer outside of any request and close; inside a response that has begun only closing is left."""
        if self._refusal is not None:
            return
        self._refusal = error
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        answer = answer_for(error)
        if self.url.startswith(_ANTHROPIC_PATH):
            answer = to_anthropic(answer)
            body = anthropic_envelope(answer.error, "")
        else:
            body = envelope(answer.error)
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
        retry = b"" if answer.retry_after_s is None else b"retry-after: %d\r\n" % answer.retry_after_s
        self.transport.write(head % (STATUS_LINE[answer.status], len(body), retry) + body)
        self.transport.close()

    def _header_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_many_headers(self) -> BuswayError:
        limits = self._limits
        return HeadersTooLarge(
            f"The request line and headers may take {limits.header_bytes} bytes, and be {limits.num_headers}."
        )

    def _arm_arrival_timer(self, wait_s: float) -> None:
        self._num_arrived = 0
        self._arrival_timer = self.loop.call_later(wait_s, self._give_up_waiting, wait_s)

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
