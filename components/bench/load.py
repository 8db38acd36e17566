"""I/O. A load generator for OpenAI-compatible streams that hardly costs more CPU than wrk: epoll on raw sockets.

One `recv` a readiness, no task, no JSON: see `responses.py` for what an event costs. `generator.py` runs it in a
process of its own; `python -m tests.bench.yardstick` compares it with wrk.
"""

import resource
import select
import socket
import ssl
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from bus.access import client_context
from bus.errors import BadConfig
from components.bench.requests import Target, parse_target, render_request
from components.bench.responses import BadResponse, CutResponse, ResponseReader
from components.bench.results import LoadOptions, LoadResult, compute_percentiles
from components.bench.tls import TlsConnection

RECV_BYTES: Final = 16 * 1024
PRERENDERED: Final = 8_192
POLL_S: Final = 0.25
MAX_GAPS: Final = 10_000_000


class _Stream:
    """One connection and the request on it."""

    __slots__ = ("connection", "is_reused", "last_ns", "num_events", "reader", "request", "sent_ns", "unsent")

    def __init__(self, connection: socket.socket | TlsConnection, request: bytes) -> None:
        self.connection = connection
        self.is_reused = False
        self.start(request)

    def start(self, request: bytes) -> None:
        """Put a request on the connection; its clock runs from here, connecting included."""
        self.request = request
        self.unsent = request
        self.reader = ResponseReader()
        self.sent_ns = time.monotonic_ns()
        self.last_ns = 0
        self.num_events = 0


class _Load:
    """State of one run; every container is bounded by the number of streams or of requests."""

    def __init__(
        self,
        options: LoadOptions,
        address: tuple[int, tuple[str, int]],
        requests: Iterator[bytes],
        tls: tuple[ssl.SSLContext, str] | None,
    ) -> None:
        self._options = options
        self._family, self._address = address
        self._tls = tls
        self._requests = requests
        self._epoll = select.epoll()
        self._streams: dict[int, _Stream] = {}
        self._deadline_ns = 0
        self._failures: Counter[str] = Counter()
        self._first_failure = ""
        self._num_failed = 0
        self._num_ok = 0
        self._num_tokens = 0
        self._num_events = 0
        self._ttft_ns = array("q")
        self._itl_ns = array("q")
        self._e2e_ns = array("q")

    def run(self) -> LoadResult:
        """Send and receive until the run is over, on the caller's thread."""
        cpu_s, started_ns = time.process_time(), time.monotonic_ns()
        if self._options.duration_s is not None:
            self._deadline_ns = started_ns + int(self._options.duration_s * 1e9)
        try:
            for _ in range(self._options.streams):
                self._open_next()
            self._loop()
        finally:
            for stream in self._streams.values():
                stream.connection.close()
            self._epoll.close()
        wall_s, cpu_s = (time.monotonic_ns() - started_ns) / 1e9, time.process_time() - cpu_s
        return LoadResult(
            num_ok=self._num_ok,
            num_failed=self._num_failed,
            failures=dict(self._failures.most_common()),
            first_failure=self._first_failure,
            num_tokens=self._num_tokens,
            num_events=self._num_events,
            wall_s=wall_s,
            cpu_s=cpu_s,
            ttft=compute_percentiles(self._ttft_ns),
            itl=compute_percentiles(self._itl_ns),
            e2e=compute_percentiles(self._e2e_ns),
        )

    def _loop(self) -> None:
        streams, poll, clock = self._streams, self._epoll.poll, time.monotonic_ns
        add_gap = self._itl_ns.append
        timeout_ns = int(self._options.timeout_s * 1e9)
        checked_ns = clock()
        while streams:
            for fd, event in poll(POLL_S):
                stream = streams[fd]
                try:
                    if stream.unsent:
                        self._send(fd, stream)
                        if not event & select.EPOLLIN:
                            continue
                    data = stream.connection.recv(RECV_BYTES)
                    now_ns = clock()
                    if data:
                        count = stream.reader.feed(data)
                    else:
                        count = 0
                        stream.reader.end()
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._break(fd, stream, (error.strerror or "connection failed").lower(), self._describe(stream))
                    continue
                except CutResponse as error:
                    self._break(fd, stream, str(error), self._describe(stream))
                    continue
                except BadResponse as error:
                    self._fail(fd, "bad response", str(error))
                    continue
                if count:
                    if stream.last_ns:
                        add_gap(now_ns - stream.last_ns)
                    else:
                        self._ttft_ns.append(now_ns - stream.sent_ns)
                    stream.last_ns = now_ns
                    stream.num_events += count
                if stream.reader.is_done:
                    self._finish(fd, stream, now_ns)
            if clock() - checked_ns > 1_000_000_000:
                checked_ns = clock()
                if len(self._itl_ns) > MAX_GAPS:
                    add_gap = _drop_gap
                late = [fd for fd, stream in streams.items() if checked_ns - stream.sent_ns > timeout_ns]
                for fd in late:
                    self._fail(fd, "timeout", f"no end of the response within {self._options.timeout_s} s")

    def _take_request(self) -> bytes | None:
        """Return the next request, None when the run is over."""
        if self._num_failed >= self._options.max_failures:
            return None
        if self._deadline_ns and time.monotonic_ns() >= self._deadline_ns:
            return None
        return next(self._requests, None)

    def _open_next(self) -> None:
        request = self._take_request()
        if request is not None:
            self._open(request)

    def _open(self, request: bytes) -> None:
        """Begin a stream; one whose handshake fails is a failed request, and is not begun again."""
        try:
            connection = self._connect()
        except OSError as error:
            self._count_failure("no TLS connection", str(error))
            return
        fd = connection.fileno()
        self._streams[fd] = _Stream(connection, request)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)

    def _connect(self) -> socket.socket | TlsConnection:
        if self._tls is not None:
            context, host = self._tls
            return TlsConnection(self._address, context, host, self._options.timeout_s)
        connection = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect_ex(self._address)
        return connection

    def _send(self, fd: int, stream: _Stream) -> None:
        """Send what fits and ask for the right readiness; raises OSError if there is no connection."""
        try:
            stream.unsent = stream.unsent[stream.connection.send(stream.unsent) :]
        except BlockingIOError:
            pass
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if stream.unsent else select.EPOLLIN)

    def _describe(self, stream: _Stream) -> str:
        host, port = self._address
        return f"{host}:{port}, after {stream.num_events} events"

    def _finish(self, fd: int, stream: _Stream, now_ns: int) -> None:
        """Book a whole response and start the connection's next request."""
        reader = stream.reader
        excerpt = reader.excerpt.decode("utf-8", "replace")
        if reader.status != 200:
            self._count_failure(f"HTTP {reader.status}", excerpt)
        elif excerpt:
            self._count_failure("error in stream", excerpt)
        elif not reader.is_complete:
            self._count_failure("stream without [DONE]", f"after {stream.num_events} events")
        else:
            self._num_ok += 1
            self._num_events += stream.num_events
            self._num_tokens += stream.num_events if reader.completion_tokens is None else reader.completion_tokens
            self._e2e_ns.append(now_ns - stream.sent_ns)
        request = self._take_request()
        if request is None or not reader.keeps_alive:
            self._close(fd)
            if request is not None:
                self._open(request)
            return
        stream.is_reused = True
        stream.start(request)
        try:
            self._send(fd, stream)
        except OSError as error:
            self._break(fd, stream, (error.strerror or "connection failed").lower(), self._describe(stream))

    def _break(self, fd: int, stream: _Stream, reason: str, text: str) -> None:
        """Handle a broken connection: a kept-alive one that the server closed meanwhile is opened once more."""
        if stream.is_reused and stream.reader.has_nothing:
            self._close(fd)
            self._open(stream.request)
        else:
            self._fail(fd, reason, text)

    def _fail(self, fd: int, reason: str, text: str) -> None:
        self._close(fd)
        self._count_failure(reason, text)
        self._open_next()

    def _count_failure(self, reason: str, text: str) -> None:
        self._failures[reason] += 1
        self._num_failed += 1
        if not self._first_failure:
            self._first_failure = f"{reason}: {text}"

    def _close(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._streams.pop(fd).connection.close()


def _drop_gap(_: int) -> None:
    """Stand in for the list of gaps once it holds MAX_GAPS."""


def run_load(options: LoadOptions) -> LoadResult:
    """Run the load in this process until it is over; raises BadConfig for an impossible URL or host.

    A server that is not there shows as failed requests, not as an exception.
    """
    if not hasattr(select, "epoll"):
        raise BadConfig("the load generator needs Linux (epoll)")
    if options.requests is None and options.duration_s is None:
        raise BadConfig("a load run needs a number of requests or a duration")
    _allow_files(options.streams + 64)
    target = parse_target(options)
    tls = (client_context(options.tls_ca), target.host) if target.is_tls else None
    return _Load(options, _resolve(target), _render_all(options, target), tls).run()


def _allow_files(count: int) -> None:
    """Raise this process's soft limit of open files to `count`; raises BadConfig where the hard limit forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        raise BadConfig(f"{count} open files are needed and the hard limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and count > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _resolve(target: Target) -> tuple[int, tuple[str, int]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadConfig(f"cannot resolve {target.host!r}: {error}") from error
    return family, (str(address[0]), int(address[1]))


def _render_all(options: LoadOptions, target: Target) -> Iterator[bytes]:
    """Render up to PRERENDERED requests now and the others when they are due (25 us each)."""
    total = options.requests
    now = deque(render_request(options, target, index) for index in range(min(total or PRERENDERED, PRERENDERED)))
    return _drain(now, options, target)


def _drain(ready: deque[bytes], options: LoadOptions, target: Target) -> Iterator[bytes]:
    index = len(ready)
    while ready:
        yield ready.popleft()
    while options.requests is None or index < options.requests:
        yield render_request(options, target, index)
        index += 1
