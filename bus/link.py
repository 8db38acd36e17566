"""I/O. A connection that is kept: core NATS (publish, subscribe, request, flush) over one session after another."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from urllib.parse import urlsplit

import anyio
import structlog

from bus import wire
from bus.config import BusConfig
from bus.errors import BadConfig, BusUnavailable, Malformed, NoResponder
from bus.metrics import BUS_HANDLER_ERRORS, BUS_RECONNECTS, MALFORMED_MESSAGES
from bus.outbox import Outbox
from bus.protocol import Handler, Incoming
from bus.session import Session
from bus.subjects import Subjects

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 1.0
SETTLE_TIMEOUT_S = 2.0
"""Bound of the last flush when a link closes."""

_REPLIES_SID = 1


def reconnect_delay_s(attempt: int, jitter: float) -> float:
    """Return the pause before connection attempt `attempt` (from 0); `jitter` from 0 to 1 spreads the clients."""
    return float(min(0.05 * 1.3 ** min(attempt, 20), 0.5) * (0.5 + jitter))


class LinkSubscription:
    """A live subscription."""

    def __init__(self, link: "Link", sid: int) -> None:
        self._link = link
        self._sid = sid

    def unsubscribe(self) -> None:
        self._link.unsubscribe(self._sid)


class Link:
    """Keeps a session to the broker and what must survive it: subscriptions, unsent messages, who waits for replies.

    `restore` runs after each connection that replaces another one, with True when the server is not the same
    process; until it returns, `wait_ready` waits.
    """

    def __init__(self, config: BusConfig, subjects: Subjects, name: str) -> None:
        self._config = config
        self._subjects = subjects
        self._name = name
        self._urls = [part.strip() for part in config.url.split(",") if part.strip()]
        for url in self._urls:
            if urlsplit(url).scheme not in ("nats", "tls"):
                raise BadConfig(f"bus.url: {redact(url)!r}: write nats://host:port or tls://host:port")
        self._outbox = Outbox()
        self._session: Session | None = None
        self._server_id = ""
        self._max_payload = 2**20
        self._ended = asyncio.Event()
        self._connected = asyncio.Event()
        self._ready = asyncio.Event()
        self._is_closing = False
        self._handlers: dict[int, Handler] = {_REPLIES_SID: self._take_reply}
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._on_malformed: dict[int, Callable[[], None]] = {}
        self._filters: dict[int, tuple[str, str]] = {_REPLIES_SID: (f"{self._inbox}.*", "")}
        self._last_sid = _REPLIES_SID
        self._replies: dict[str, asyncio.Future[Incoming]] = {}
        self._last_reply = 0
        self._logged: Counter[tuple[str, str]] = Counter()

    @property
    def is_connected(self) -> bool:
        return self._session is not None and self._session.is_connected

    @property
    def server_id(self) -> str:
        """Which server process the link last spoke to."""
        return self._server_id

    @property
    def server_version(self) -> str:
        return self._session.server_version if self._session else ""

    @property
    def max_payload_bytes(self) -> int:
        return self._max_payload

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        self._last_reply += 1
        return f"{self._inbox}x.{self._last_reply:x}"

    # Sending

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        wire.check_subject(subject)
        if reply:
            wire.check_subject(reply)
        self._send(subject, reply, payload, headers)

    def _send(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str] | None) -> None:
        if len(payload) > self._max_payload:
            # The server would cut the connection.
            raise Malformed(f"{subject}: {len(payload)} bytes, but the broker takes at most {self._max_payload}")
        head = wire.hpub(subject, reply, headers, payload) if headers else wire.pub(subject, reply, payload)
        if len(payload) < wire.LARGE_BYTES:
            self._outbox.put(head + payload + b"\r\n")
        else:
            self._outbox.put(head, payload, b"\r\n")

    def answer(self, reply: str, verb: bytes, server_id: str) -> None:
        """Decide the fate of a delivery that `server_id` made; lost when that server or the connection is gone."""
        if self.is_connected and server_id == self._server_id:
            self._outbox.put_small(wire.ack(reply, verb))

    async def flush(self, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        session = await self._wait_session(timeout_s, "flush")
        future = session.ping()
        try:
            await asyncio.wait_for(future, deadline - asyncio.get_running_loop().time())
        except TimeoutError as error:
            raise BusUnavailable(f"flush: the broker did not answer within {timeout_s} s") from error

    # Receiving

    def subscribe(
        self, subject: str, handler: Handler, queue: str = "", on_malformed: Callable[[], None] | None = None
    ) -> LinkSubscription:
        """Receive messages; `on_malformed` hears of those that cannot be read and were dropped."""
        wire.check_filter(subject)
        wire.check_queue(queue)
        self._last_sid += 1
        sid = self._last_sid
        self._handlers[sid] = handler
        self._filters[sid] = (subject, queue)
        if on_malformed is not None:
            self._on_malformed[sid] = on_malformed
        if self.is_connected:
            self._outbox.put_small(f"SUB {subject} {queue} {sid}\r\n".encode())
        return LinkSubscription(self, sid)

    def unsubscribe(self, sid: int) -> None:
        if self._filters.pop(sid, None) is None:
            return
        del self._handlers[sid]
        self._on_malformed.pop(sid, None)
        if self.is_connected:
            self._outbox.put_small(f"UNSUB {sid}\r\n".encode())

    # Asking

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Incoming:
        """Return the first reply; raise `NoResponder` or `BusUnavailable`."""
        wire.check_subject(subject)
        loop = asyncio.get_running_loop()
        if not self.is_connected:
            started = loop.time()
            await self._wait_session(timeout_s, subject)
            timeout_s -= loop.time() - started
        self._last_reply += 1
        token = f"{self._last_reply:x}"
        future: asyncio.Future[Incoming] = loop.create_future()
        self._replies[token] = future
        timer = loop.call_later(timeout_s, _give_up, future, subject, timeout_s)
        try:
            self._send(subject, f"{self._inbox}.{token}", payload, headers)
            incoming = await future
        finally:
            timer.cancel()
            del self._replies[token]
        if incoming.headers and not incoming.payload and incoming.headers.get(wire.STATUS) == wire.NO_RESPONDERS:
            raise NoResponder(f"nobody listens on {subject}")
        return incoming

    def _take_reply(self, incoming: Incoming) -> None:
        future = self._replies.get(incoming.subject[len(self._inbox) + 1 :])
        if future is not None and not future.done():
            future.set_result(incoming)

    # Waiting

    async def _wait_session(self, timeout_s: float, purpose: str) -> Session:
        try:
            async with asyncio.timeout(timeout_s):
                while self._session is None or not self._session.is_connected:
                    await self._connected.wait()
        except TimeoutError as error:
            raise BusUnavailable(f"{purpose}: no connection to {self.where} for {timeout_s} s") from error
        return self._session

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the link is up and restored; raise `BusUnavailable`."""
        if self._ready.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            raise BusUnavailable(f"the connection to {self.where} was not back within {timeout_s} s") from error

    @property
    def where(self) -> str:
        """The broker's address for messages, without its password."""
        return ", ".join(redact(url) for url in self._urls)

    # Keeping the session

    async def open(self) -> None:
        """Connect for the first time; raise `BusUnavailable` after the configured time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.connect_timeout_s
        attempt = 0
        while True:
            error = await self._try_connect(attempt)
            if error is None:
                self._ready.set()
                return
            delay_s = reconnect_delay_s(attempt, random.random())
            if loop.time() + delay_s > deadline:
                raise BusUnavailable(
                    f"no NATS server answered at {self.where} within {self._config.connect_timeout_s:g} s "
                    f"({_reason(error)}). Start one with `busway up`; `busway doctor` looks closer."
                ) from error
            await anyio.sleep(delay_s)
            attempt += 1

    async def keep(self, restore: Callable[[bool], Awaitable[None]]) -> None:
        """Open another session whenever one ends, until cancelled."""
        while True:
            await self._ended.wait()
            self._ended.clear()
            previous_server = self._server_id
            attempt = 0
            while (error := await self._try_connect(attempt)) is not None:
                if attempt == 0:
                    log.warning("bus.unreachable", url=self.where, reason=_reason(error))
                await anyio.sleep(reconnect_delay_s(attempt, random.random()))
                attempt += 1
            BUS_RECONNECTS.inc()
            log.info("bus.reconnected", url=self.where, attempts=attempt + 1)
            await self._restore(restore, self._server_id != previous_server)

    async def _restore(self, restore: Callable[[bool], Awaitable[None]], is_new_server: bool) -> None:
        attempt = 0
        while self.is_connected:
            try:
                await restore(is_new_server)
            except BusUnavailable as error:
                # JetStream is up a moment after core NATS.
                if attempt == 10:
                    log.warning("bus.restore_delayed", reason=str(error))
                await anyio.sleep(reconnect_delay_s(attempt, random.random()))
                attempt += 1
            else:
                break

    def mark_ready(self) -> None:
        """End the waiting of `wait_ready`: streams and buckets are there."""
        if self.is_connected:
            self._ready.set()

    async def _try_connect(self, attempt: int) -> Exception | None:
        url = self._urls[attempt % len(self._urls)]
        session = Session(self, self._outbox, self._handlers, self._list_subscriptions)
        try:
            await session.open(
                url,
                name=self._name,
                timeout_s=CONNECT_TIMEOUT_S,
                credentials_file=self._config.credentials_file,
            )
        except ImportError as error:
            raise BadConfig("bus.credentials_file needs the package nkeys: pip install nkeys") from error
        except Exception as error:
            # nats-py lets through whatever its parsing of a greeting raises.
            return error
        if not session.is_connected:
            return session.last_error or ConnectionResetError("closed at once")
        self._outbox.open(is_same_server=session.server_id == self._server_id)
        self._session = session
        self._server_id = session.server_id
        self._max_payload = session.max_payload
        self._connected.set()
        return None

    def _list_subscriptions(self) -> Iterator[tuple[int, str, str]]:
        for sid, (subject, queue) in self._filters.items():
            yield sid, subject, queue

    async def close(self) -> None:
        """Send what is buffered, if the broker takes it, and cut the connection."""
        self._is_closing = True
        session = self._session
        if session is None or not session.is_connected:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self.flush(SETTLE_TIMEOUT_S)
            except BusUnavailable as error:
                log.warning("bus.closed_unflushed", reason=str(error))
            session.end(ConnectionError("closed"))
            await session.wait_ended()

    # SessionOwner

    def session_ended(self, session: Session, error: Exception) -> None:
        self._connected.clear()
        self._ready.clear()
        self._outbox.close()
        for future in self._replies.values():
            if not future.done():
                future.set_exception(BusUnavailable(f"the connection was lost: {_reason(error)}"))
        if not self._is_closing:
            log.warning("bus.disconnected", url=self.where, reason=_reason(error))
            self._ended.set()

    def message_was_malformed(self, sid: int, subject: bytes, reply: bytes, error: Exception) -> None:
        family = self._subjects.family(subject.decode("utf-8", "replace"))
        MALFORMED_MESSAGES.labels(family=family).inc()
        if self._is_first(family, type(error).__name__):
            log.warning("message.malformed", family=family, subject=repr(subject[:80]), reason=str(error)[:200])
        if reply.startswith(b"$JS.ACK."):
            self._terminate(reply)
        if (hook := self._on_malformed.get(sid)) is not None:
            hook()

    def handler_failed(self, subject: str, error: Exception) -> None:
        family = self._subjects.family(subject)
        BUS_HANDLER_ERRORS.labels(family=family).inc()
        if self._is_first(family, type(error).__qualname__):
            log.error("handler.failed", family=family, subject=subject, exc_info=error)

    def server_complained(self, error: Exception) -> None:
        if self._is_first("server", str(error)[:200]):
            log.error("bus.refused", reason=_reason(error))

    def _terminate(self, reply: bytes) -> None:
        """A stored message that cannot be read would come again for ever."""
        try:
            self.answer(reply.decode("ascii"), b"+TERM malformed", self._server_id)
        except UnicodeDecodeError:
            return

    def _is_first(self, family: str, kind: str) -> bool:
        """Say whether this kind of trouble is new; remembers at most 1,000 kinds."""
        key = (family, kind)
        if key not in self._logged and len(self._logged) >= 1000:
            return False
        self._logged[key] += 1
        return self._logged[key] == 1


def redact(url: str) -> str:
    """Return a URL without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _give_up(future: "asyncio.Future[Incoming]", subject: str, timeout_s: float) -> None:
    if not future.done():
        future.set_exception(BusUnavailable(f"{subject}: no answer within {timeout_s:.3g} s"))
