"""I/O. One TCP connection to nats-server, used once: nats-py's client with what breaks in production replaced.

nats-py shakes hands, authenticates and speaks TLS. All else is here, in `bus.parser` or in `bus.link`, because in 2.16
- an exception while a message is parsed or handled ends the read loop while `is_connected` stays true,
- its parser takes subjects apart at bytes that the server lets through: the connection ends, again and again,
- PING overtakes what is buffered, so that `flush` is no barrier, and a PONG after a timeout ends the read loop too,
- closing waits for a write buffer that a dead link never empties, which stops its own reconnect,
- any `-ERR` closes the client for good, its error callback is awaited inside the read loop,
- each subscription has a queue that drops the newest messages, and a task: 14 us a message instead of 2,
- one task reads and one writes: two more turns of the event loop for each message that comes alone.
So a session never reconnects: it ends, once, says why, and its link opens another.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import PERMISSIONS_ERR

from bus import wire
from bus.access import Access
from bus.errors import BusUnavailable, Malformed
from bus.outbox import Outbox
from bus.parser import Parser
from bus.protocol import Handler, Incoming

BURST_BYTES = 64 * 1024
"""Who reads so much at once lets others have a turn before it reads on."""
PING_INTERVAL_S = 2.0
MAX_PINGS_OUT = 2
UNACKED_TIMEOUT_MS = 4000
"""How long sent bytes may stay unacknowledged by the peer's kernel before the connection counts as dead."""


class SessionOwner(Protocol):
    """Who opened a session, and hears of what happens in it. No call may wait."""

    def session_ended(self, session: "Session", error: Exception) -> None:
        """The connection is gone; called once."""

    def message_was_malformed(self, sid: int, subject: bytes, reply: bytes, error: Exception) -> None:
        """A message could not be read; it was dropped."""

    def handler_failed(self, subject: str, error: Exception) -> None:
        """A handler raised."""

    def burst_ended(self) -> None:
        """All that came at once was handed over; what it led to is about to be sent."""

    def server_complained(self, error: Exception) -> None:
        """The server refused something; the connection lives."""


class Session(Client):
    """A connection; `subscriptions` are (subject, queue) by id, announced before anything else is sent."""

    def __init__(
        self,
        owner: SessionOwner,
        outbox: Outbox,
        handlers: Mapping[int, Handler],
        subscriptions: Callable[[], Iterable[tuple[int, str, str]]],
    ) -> None:
        super().__init__()
        self._owner = owner
        self._outbox = outbox
        self._handlers = handlers
        self._subscriptions = subscriptions
        self._parser = Parser(self._take_message, self._take_control)
        self._writer: asyncio.Transport | None = None
        """Where commands are written; None before the handshake is over, and after the end."""
        self._is_clogged = False
        self.is_reading = False
        """Whether messages are being handed over, so that `burst_ended` follows."""

    @property
    def server_id(self) -> str:
        """Random id of the server process: another one after each start."""
        return str(self._server_info.get("server_id", ""))

    @property
    def server_version(self) -> str:
        return str(self._server_info.get("version", ""))

    @property
    def cluster(self) -> str:
        """Name of the servers that this one is one of; empty where it is alone."""
        return str(self._server_info.get("cluster", ""))

    async def open(self, url: str, *, name: str, timeout_s: float, access: Access, has_echo: bool) -> None:
        """Connect and announce the subscriptions; raise `OSError`, `TimeoutError` or `nats.errors.Error`.

        With `has_echo`, what is published here also comes to the subscriptions that are made here.
        """
        try:
            await self.connect(
                [url],
                name=name,
                error_cb=self._report,
                allow_reconnect=False,
                connect_timeout=timeout_s,  # type: ignore[arg-type]
                ping_interval=PING_INTERVAL_S,  # type: ignore[arg-type]
                max_outstanding_pings=MAX_PINGS_OUT,
                signature_cb=access.sign if access.identity else None,
                user_jwt_cb=access.token if access.identity else None,
                tls=access.tls,
                no_echo=not has_echo,
                skip_subject_validation=True,
            )
            assert isinstance(self._transport, _Transport)
            writer, rest = await self._transport.take_over(_Protocol(self))
            self._parser.feed(rest)  # no message: nothing is subscribed
            announced = [f"SUB {subject} {queue} {sid}\r\n".encode() for sid, subject, queue in self._subscriptions()]
            writer.write(b"".join(announced))
            self._writer = writer
        except BaseException:
            self.end(ConnectionError("the connection was not completed"))
            raise

    def ping(self) -> asyncio.Future[bool]:
        """Send a PING behind all that was put into the outbox; the result arrives with the server's PONG."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pongs.append(future)
        self._outbox.put_small(wire.PING)
        return future

    def end(self, error: Exception) -> None:
        """Cut the connection at once, tell the owner if it was up; nothing waits. Ending twice is ending once."""
        if self.is_closed:
            return
        was_open, self._writer = self._writer is not None, None
        self._status = Client.CLOSED
        self._err = error
        if self._ping_interval_task is not None and self._ping_interval_task is not asyncio.current_task():
            self._ping_interval_task.cancel()
        if isinstance(self._transport, _Transport):
            self._transport.abort()
        for future in self._pongs:
            if not future.done():
                future.set_exception(BusUnavailable(f"the connection was lost: {error}"))
                future.exception()
        if was_open:
            self._owner.session_ended(self, error)

    async def wait_ended(self) -> None:
        """Wait until the tasks of an ended session are gone."""
        tasks = [task for task in (self._reading_task, self._ping_interval_task, self._flusher_task) if task]
        await asyncio.gather(*tasks, return_exceptions=True)

    # The protocol calls these; none of them waits.

    def receive(self, data: bytes) -> None:
        """Hand over what came, and send all that was said to it at once."""
        if self._writer is None:
            return
        self._outbox.hold()
        self.is_reading = True
        try:
            self._parser.feed(data)
        except Exception as error:
            # Whatever it is, a connection that is not read any more must not look alive.
            self.end(error)
        self.is_reading = False
        self._owner.burst_ended()
        if self._writer is not None:
            self._outbox.release()

    def send(self) -> None:
        """Write what the outbox holds; while the link is clogged that fills up to its bound instead."""
        if self._writer is not None and not self._is_clogged:
            commands = self._outbox.take()
            if not commands:
                return
            if sum(map(len, commands)) < wire.LARGE_BYTES:
                self._writer.write(b"".join(commands))
            else:
                self._writer.writelines(commands)

    def pause_reading(self) -> None:
        """Read on in a later turn of the event loop."""
        if self._writer is not None:
            self._writer.pause_reading()
            asyncio.get_running_loop().call_soon(self._resume_reading)

    def _resume_reading(self) -> None:
        if self._writer is not None:
            self._writer.resume_reading()

    def clog(self, is_clogged: bool) -> None:
        """Write nothing while much of what was written is still here."""
        self._is_clogged = is_clogged
        self.send()

    def _take_message(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            incoming = Incoming(
                subject.decode(),
                payload,
                reply.decode() if reply else "",
                wire.parse_headers(headers) if headers else None,
            )
        except (Malformed, UnicodeDecodeError) as error:
            self._owner.message_was_malformed(sid, subject, reply, error)
            return
        try:
            handler(incoming)
        except Exception as error:
            self._owner.handler_failed(incoming.subject, error)

    def _take_control(self, line: bytes) -> None:
        if line == b"PING":
            self._outbox.put_small(wire.PONG)
        elif line == b"PONG":
            self._take_pong()
        elif line.startswith(b"-ERR"):
            text = line[4:].decode("utf-8", "replace").strip().strip("'")
            error = nats.errors.Error(f"nats: {text}")
            if PERMISSIONS_ERR in text.lower():
                self._owner.server_complained(error)
            else:
                # The server closes the connection, and where it does not, a new one does no harm.
                raise error
        elif line != b"+OK" and not line.startswith(b"INFO "):
            raise Malformed(f"no protocol: {line[:80]!r}")

    def _take_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)

    # What follows replaces methods of nats-py's client.

    async def _select_next_server(self) -> None:
        server = self._server_pool[0]
        await self._connect_to_server(server)
        self._current_server = server

    async def _connect_to_server(self, s: Any) -> None:
        self._transport = _Transport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, self.options["connect_timeout"])
        self._transport.tune()

    def _connect_command(self) -> bytes:
        if self._server_pool[0].uri.scheme == "tls" and not self._server_info.get("tls_required"):
            # Who stands between could have cut it out of the greeting, to read what comes.
            raise nats.errors.Error("the address says tls://, but the server offers no TLS")
        return super()._connect_command()

    async def _read_loop(self) -> None:
        """Read nothing: the protocol does."""

    async def _flusher(self) -> None:
        """Write nothing: `send` does."""

    async def _ping_interval(self) -> None:
        while True:
            await asyncio.sleep(self.options["ping_interval"])
            self._pings_outstanding += 1
            if self._pings_outstanding > self.options["max_outstanding_pings"]:
                self.end(nats.errors.StaleConnectionError())
                return
            self.ping()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self.end(self._err or ConnectionError("closed"))

    async def _report(self, error: Exception) -> None:
        """Take nats-py's error callback: what matters of it arrives by `end` or as an exception of `open`."""


class _Protocol(asyncio.Protocol):
    """What the event loop tells of a socket."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def data_received(self, data: bytes) -> None:
        if len(data) >= BURST_BYTES:
            self._session.pause_reading()
        self._session.receive(data)

    def pause_writing(self) -> None:
        self._session.clog(True)

    def resume_writing(self) -> None:
        self._session.clog(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.end(exc or ConnectionResetError("the server closed the connection"))


class _Transport(TcpTransport):
    def tune(self) -> None:
        """Send small messages at once, and notice a peer that is gone although bytes wait for it."""
        assert self._io_writer is not None
        raw = self._io_writer.get_extra_info("socket")
        if raw.family not in (socket.AF_INET, socket.AF_INET6):
            return
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_TIMEOUT_MS)

    async def connect_tls(self, uri: Any, ssl_context: Any, buffer_size: int, connect_timeout: float) -> None:
        """As nats-py's, with a protocol that leaves nothing half open: TLS cannot be, and asyncio says so each time."""
        assert self._io_writer is not None
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = _TlsReaderProtocol(reader)
        name = uri if isinstance(uri, str) else uri.hostname
        plain = self._io_writer.transport
        async with asyncio.timeout(connect_timeout):
            transport = await loop.start_tls(plain, protocol, ssl_context, server_hostname=name)
        if transport is None:
            raise ConnectionResetError("the server hung up while TLS began")
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def take_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Let `protocol` have what comes from now on; return where to write, and what came before. Never waits."""
        assert self._io_reader is not None
        assert self._io_writer is not None
        writer = cast("asyncio.Transport", self._io_writer.transport)
        writer.set_protocol(protocol)
        self._io_reader.feed_eof()
        return writer, await self._io_reader.read()

    def abort(self) -> None:
        """Close without waiting for what was not sent."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


class _TlsReaderProtocol(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        super().eof_received()
        return False
