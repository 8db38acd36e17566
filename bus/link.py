"""I/O. A connection that is kept: core NATS (publish, subscribe, request, flush) over one session after another."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping

import anyio
import structlog

from bus import wire
from bus.access import read_access, why_denied
from bus.addresses import parse_urls, reconnect_delay_s, redact
from bus.config import BusConfig
from bus.errors import BusUnavailable, BuswayError, Malformed, NoResponder
from bus.metrics import BUS_RECONNECTS
from bus.outbox import Outbox
from bus.protocol import Handler, Incoming
from bus.replies import OnReply, Replies
from bus.session import Session
from bus.subjects import Subjects, slug
from bus.troubles import Troubles

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 1.0
SETTLE_TIMEOUT_S = 2.0
"""Bound of the last flush when a link closes."""

STEADY_S = 1.0
"""A connection that lived shorter is not replaced at once."""

_REPLIES_SID = 1


class LinkSubscription:
    """A live subscription."""

    def __init__(self, link: "Link", sid: int) -> None:
        self._link = link
        self._sid = sid

    def unsubscribe(self) -> None:
        self._link.unsubscribe(self._sid)

    def retire(self) -> None:
        """Ask the broker to send nothing more; what is on its way is still handled, until `unsubscribe`."""
        self._link.retire(self._sid)


class Link:
    """Keeps a session to the broker and what must survive it: subscriptions, unsent messages, who waits for replies.

    Whoever keeps it restores what the broker may have lost, and says so by `mark_ready`; until then `wait_ready` waits.
    """

    def __init__(self, config: BusConfig, subjects: Subjects, name: str, *, has_echo: bool = True) -> None:
        """`has_echo`: what this link publishes also comes to its own subscriptions."""
        self._config = config
        self._has_echo = has_echo
        self.access = read_access(config)
        self._name = self.access.identity.name if self.access.identity else name
        self._urls = parse_urls(config.url)
        self._first_url = random.randrange(len(self._urls))  # processes spread over brokers
        self.troubles = Troubles(subjects)
        self._outbox = Outbox()
        self._session: Session | None = None
        self._server_id = ""
        self._origin = ""
        self._num_connections = 0
        self._restored_server_id = ""
        self._cluster = ""
        self.is_same_cluster = False
        """Whether the last server is one of those that the one before was of: they kept what it had."""
        self._opened_at = 0.0
        self._max_payload = 2**20
        self._ended = asyncio.Event()
        self._connected = asyncio.Event()
        self._ready = asyncio.Event()
        self._is_closing = False
        self._replies = Replies(slug(self._name))
        self._handlers: dict[int, Handler] = {_REPLIES_SID: self._replies.take}
        self._filters: dict[int, tuple[str, str]] = {_REPLIES_SID: (self._replies.filter, "")}
        self._on_malformed: dict[int, Callable[[], None]] = {}
        self._last_sid = _REPLIES_SID
        self._deferred: list[Callable[[], None]] = []

    @property
    def is_connected(self) -> bool:
        return self._session is not None and self._session.is_connected

    @property
    def origin(self) -> str:
        """What deliveries come from now, and answers to them must go to: a server process, or one connection to it."""
        return self._origin

    @property
    def server_version(self) -> str:
        return self._session.server_version if self._session else ""

    @property
    def max_payload_bytes(self) -> int:
        return self._max_payload

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        return self._replies.new_inbox()

    # Sending

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        wire.check_subject(subject)
        if reply:
            wire.check_reply(reply)
        self._send(subject, reply, payload, headers)

    def _send(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str] | None) -> None:
        if len(payload) > self._max_payload:
            # The server would cut the connection.
            raise Malformed(f"{subject}: {len(payload)} bytes, but the broker takes at most {self._max_payload}")
        head = wire.hpub(subject, reply, headers, payload) if headers else wire.pub(subject, reply, payload)
        if len(payload) < wire.LARGE_BYTES:
            self._outbox.put(b"%b%b\r\n" % (head, payload))
        else:
            self._outbox.put(head, payload, b"\r\n")

    def answer(self, reply: str, verb: bytes, origin: str) -> None:
        """Decide the fate of a delivery that came from `origin`; lost when that is gone.

        That it is done is nobody's hurry: it goes with what is sent next.
        """
        if self.is_connected and origin == self._origin:
            put = self._outbox.put_late if verb == wire.DONE else self._outbox.put_small
            put(wire.ack(reply, verb))

    def defer(self, function: Callable[[], None]) -> None:
        """Call once all that came at once was handed over, or in a turn of its own."""
        self._deferred.append(function)
        if self._session is None or not self._session.is_reading:
            asyncio.get_running_loop().call_soon(self.burst_ended)

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

    def retire(self, sid: int) -> None:
        if sid in self._filters and self.is_connected:
            self._outbox.put_small(f"UNSUB {sid}\r\n".encode())

    def unsubscribe(self, sid: int) -> None:
        if self._filters.pop(sid, None) is None:
            return
        del self._handlers[sid]
        self._on_malformed.pop(sid, None)
        if self.is_connected:
            self._outbox.put_small(f"UNSUB {sid}\r\n".encode())

    # Asking

    def ask(
        self,
        subject: str,
        payload: bytes,
        on_reply: OnReply,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send, and call `on_reply` once: with the first reply, or with why there is none after `timeout_s`.

        Returns the reply subject, by which `forget` ends the wait. Raises `BusUnavailable` or `Malformed` where nothing
        was sent.
        """
        wire.check_request(subject)
        reply = self._replies.open(on_reply, subject, timeout_s)
        try:
            self._send(subject, reply, payload, headers)
        except BuswayError:
            self._replies.close(reply)
            raise
        return reply

    def forget(self, reply: str) -> None:
        """Nobody waits for this reply any more."""
        self._replies.close(reply)

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Incoming:
        """Return the first reply; raise `NoResponder` or `BusUnavailable`."""
        loop = asyncio.get_running_loop()
        if not self.is_connected:
            started = loop.time()
            await self._wait_session(timeout_s, subject)
            timeout_s -= loop.time() - started
        future: asyncio.Future[Incoming] = loop.create_future()

        def take(answer: Incoming | BusUnavailable) -> None:
            if future.done():
                return
            if isinstance(answer, BusUnavailable):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        reply = self.ask(subject, payload, take, timeout_s=timeout_s, headers=headers)
        try:
            incoming = await future
        finally:
            self.forget(reply)
        if is_unheard(incoming):
            raise NoResponder(f"nobody listens on {subject}")
        return incoming

    # Waiting

    async def _wait_session(self, timeout_s: float, purpose: str) -> Session:
        try:
            async with asyncio.timeout(timeout_s):
                while self._session is None or not self._session.is_connected:
                    await self._connected.wait()
        except TimeoutError as error:
            raise BusUnavailable(f"{purpose}: no connection to {self.where} for {timeout_s} s") from error
        return self._session

    @property
    def is_ready(self) -> bool:
        """Whether the link is up and restored."""
        return self._ready.is_set()

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
        """Connect for the first time; raise `BusUnavailable` after the configured time, `AccessDenied` at once."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.connect_timeout_s
        attempt = 0
        while True:
            error = await self._try_connect(attempt)
            if error is None:
                self._restored_server_id = self._server_id
                self._ready.set()
                return
            if denied := why_denied(error, self.access, self._config, self.where):
                raise denied from error
            delay_s = reconnect_delay_s(attempt, random.random())
            if loop.time() + delay_s > deadline:
                raise BusUnavailable(
                    f"cannot reach a NATS server at {self.where} within {self._config.connect_timeout_s:g} s "
                    f"({_reason(error)}). Start one with `busway up`; `busway doctor` looks closer."
                ) from error
            await anyio.sleep(delay_s)
            attempt += 1

    async def keep(self, restore: Callable[[bool], Awaitable[None]]) -> None:
        """Open another session whenever one ends, until cancelled.

        `restore` runs after each, with True when the server is another process than the one last restored.
        """
        num_short_lived = 0
        while True:
            await self._ended.wait()
            self._ended.clear()
            lived_s = asyncio.get_running_loop().time() - self._opened_at
            num_short_lived = num_short_lived + 1 if lived_s < STEADY_S else 0
            if num_short_lived:
                # A server that takes us in and throws us out must not be asked without a pause.
                await anyio.sleep(reconnect_delay_s(num_short_lived, random.random()))
            attempt = 0
            while (error := await self._try_connect(attempt)) is not None:
                if attempt == 0:
                    log.warning("bus.unreachable", url=self.where, reason=_reason(error))
                await anyio.sleep(reconnect_delay_s(attempt, random.random()))
                attempt += 1
            BUS_RECONNECTS.inc()
            log.info("bus.reconnected", url=self.where, attempts=attempt + 1)
            await self._restore(restore)

    async def _restore(self, restore: Callable[[bool], Awaitable[None]]) -> None:
        attempt = 0
        while self.is_connected:
            server_id = self._server_id
            try:
                await restore(server_id != self._restored_server_id)
            except BusUnavailable as error:
                # JetStream is up a moment after core NATS.
                if attempt == 10:
                    log.warning("bus.restore_delayed", reason=str(error))
                await anyio.sleep(reconnect_delay_s(attempt, random.random()))
                attempt += 1
            else:
                self._restored_server_id = server_id
                return

    def mark_ready(self) -> None:
        """End the waiting of `wait_ready`: streams and buckets are there."""
        if self.is_connected:
            self._ready.set()

    async def _try_connect(self, attempt: int) -> Exception | None:
        url = self._urls[(self._first_url + attempt) % len(self._urls)]
        session = Session(self, self._outbox, self._handlers, self._list_subscriptions)
        try:
            if attempt or self._server_id:
                # Files that were wrong, or whose time is over, may have been replaced.
                self.access = read_access(self._config)
            await session.open(
                url,
                name=self._name,
                timeout_s=CONNECT_TIMEOUT_S,
                access=self.access,
                has_echo=self._has_echo,
            )
        except Exception as error:
            # nats-py lets through whatever its parsing of a greeting raises.
            return error
        if not session.is_connected:
            return session.last_error or ConnectionResetError("closed at once")
        self._num_connections += 1
        origin = session.server_id if self.access.keeps_answers else f"{session.server_id} {self._num_connections}"
        self._outbox.open(session.send, keeps_answers=origin == self._origin)
        self._origin = origin
        self._session = session
        self._server_id = session.server_id
        self.is_same_cluster = bool(session.cluster) and session.cluster == self._cluster
        self._cluster = session.cluster
        self._opened_at = asyncio.get_running_loop().time()
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
        self._replies.fail_all(f"the connection was lost: {_reason(error)}")
        if not self._is_closing:
            log.warning("bus.disconnected", url=self.where, reason=_reason(error))
            self._ended.set()

    def message_was_malformed(self, sid: int, subject: bytes, reply: bytes, error: Exception) -> None:
        self.troubles.malformed(subject.decode("utf-8", "replace"), error)
        if reply.startswith(b"$JS.ACK."):
            self._terminate(reply)
        if (hook := self._on_malformed.get(sid)) is not None:
            hook()

    def handler_failed(self, subject: str, error: Exception) -> None:
        self.troubles.handler_failed(subject, error)

    def burst_ended(self) -> None:
        deferred, self._deferred = self._deferred, []
        for function in deferred:
            try:
                function()
            except Exception as error:
                self.troubles.handler_failed("", error)

    def server_complained(self, error: Exception) -> None:
        self.troubles.refused(error)

    def _terminate(self, reply: bytes) -> None:
        """A stored message that cannot be read would come again for ever."""
        try:
            self.answer(reply.decode("ascii"), b"+TERM malformed", self._origin)
        except UnicodeDecodeError:
            return


def is_unheard(incoming: Incoming) -> bool:
    """Whether this is the server's reply that nobody listens."""
    headers = incoming.headers
    return headers is not None and not incoming.payload and headers.get(wire.STATUS) == wire.NO_RESPONDERS


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
