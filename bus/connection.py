"""I/O. The bus on NATS: `open_bus` connects, everything a process does there is a method of what it gives."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import structlog
from anyio.abc import TaskGroup

from bus import resources, streams, wire
from bus.blobs import Blobs
from bus.bucket import NatsBucket
from bus.config import BusConfig
from bus.errors import BadConfig, BusUnavailable, BuswayError, NoJetStream, StreamMismatch, StreamMissing
from bus.jetstream import API_TIMEOUT_S, JetStream, publish_headers, to_error
from bus.link import Link
from bus.protocol import AppendAck, ConsumerSpec, Delivery, Handler, Incoming, OnAppended, Pull, Subscription
from bus.queue import StandingPull, consumer_config, to_deliveries
from bus.replay import Replay
from bus.streams import Declared
from bus.subjects import Subjects

log = structlog.get_logger()

RESTORE_TIMEOUT_S = 10.0
"""Bound of one `on_reconnect` callback."""
BLOBS = "FILES"
STREAMS_TIMEOUT_S = 30.0
"""How long a process waits at its start for streams that others make, and for a cluster that finds together."""
STREAMS_RETRY_S = 0.05


def load_declared(subjects: Subjects, *, max_replicas: int = 1) -> list[Declared]:
    """Read what `nats/` declares, with at most so many copies of each; raise `BadConfig`."""
    kinds = (("stream", "streams"), ("bucket", "buckets"), ("objects", "objects"))
    return [
        streams.declare(kind, short, text, subjects, max_replicas=max_replicas)
        for kind, folder in kinds
        for short, text in resources.read_all("nats", f"{folder}/*.json")
    ]


class NatsBus:
    """`bus.protocol.Bus` on nats-server; made by `open_bus`."""

    def __init__(
        self, link: Link, subjects: Subjects, declared: list[Declared], tasks: TaskGroup, *, max_replicas: int = 1
    ) -> None:
        self._max_replicas = max_replicas
        self._link = link
        self._subjects = subjects
        self._jetstream = JetStream(link)
        self._declared = {(entry.kind, entry.short): entry for entry in declared}
        self._tasks = tasks
        self._blobs = Blobs(self._jetstream, streams.stream_name(subjects, BLOBS))
        self._pulls: set[StandingPull] = set()
        self._restores: list[Callable[[], Awaitable[None]]] = []
        self._is_ensured = False

    @property
    def subjects(self) -> Subjects:
        return self._subjects

    @property
    def is_connected(self) -> bool:
        return self._link.is_connected

    @property
    def is_guarded(self) -> bool:
        return self._link.access.identity is not None

    @property
    def max_payload_bytes(self) -> int:
        return self._link.max_payload_bytes

    @property
    def server_version(self) -> str:
        return self._link.server_version

    def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self._link.publish(subject, payload, reply=reply, headers=headers)

    def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        return self._link.subscribe(subject, handler, queue)

    def new_inbox(self) -> str:
        return self._link.new_inbox()

    def defer(self, function: Callable[[], None]) -> None:
        self._link.defer(function)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 2.0) -> Incoming:
        return await self._link.request(subject, payload, timeout_s=timeout_s)

    async def flush(self, *, timeout_s: float = 2.0) -> None:
        await self._link.flush(timeout_s)

    async def append(
        self, subject: str, payload: bytes, *, msg_id: str = "", ttl_s: int | None = None, timeout_s: float = 1.0
    ) -> AppendAck:
        await self._link.wait_ready(timeout_s)
        return await self._jetstream.append(subject, payload, publish_headers(msg_id=msg_id, ttl_s=ttl_s), timeout_s)

    def append_soon(
        self,
        subject: str,
        payload: bytes,
        on_done: OnAppended,
        *,
        msg_id: str = "",
        ttl_s: int | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        headers = publish_headers(msg_id=msg_id, ttl_s=ttl_s)
        if self._link.is_ready:
            self._jetstream.append_soon(subject, payload, headers, timeout_s, on_done)
        else:
            self._tasks.start_soon(self._append_late, wire.check_subject(subject), payload, headers, timeout_s, on_done)

    async def _append_late(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float, on_done: OnAppended
    ) -> None:
        answer: AppendAck | BuswayError
        try:
            await self._link.wait_ready(timeout_s)
            answer = await self._jetstream.append(subject, payload, headers, timeout_s)
        except BuswayError as error:
            answer = error
        on_done(answer)

    @asynccontextmanager
    async def pull(self, consumer: ConsumerSpec, handler: Callable[[Delivery], None]) -> AsyncIterator[Pull]:
        stream = self._find_declared("stream", consumer.stream)
        config = consumer_config(consumer, is_memory=stream.is_memory)

        async def create() -> str:
            return (await self._jetstream.create_consumer(stream.name, consumer.name, config)).name

        pull = StandingPull(self._jetstream, stream.name, create, to_deliveries(self._jetstream, handler))
        async with self._run_pull(pull):
            yield pull
            await pull.retire()

    async def replay(self, stream: str, filter_subject: str, handler: Handler) -> None:
        replay = Replay(self._jetstream, self._find_declared("stream", stream).name, filter_subject, handler)
        async with self._run_pull(replay.pull):
            try:
                await replay.wait()
            finally:
                replay.close()

    async def stored(self, stream: str, filter_subject: str) -> list[bytes]:
        name = self._find_declared("stream", stream).name
        await self._link.wait_ready(API_TIMEOUT_S)
        payloads, seq = [], 1
        while (found := await self._jetstream.read_next(name, filter_subject, seq)) is not None:
            payloads.append(found.payload)
            seq = found.seq + 1
        return payloads

    def bucket(self, name: str) -> NatsBucket:
        stream = self._find_declared("bucket", name)
        prefix = streams.key_prefix(self._subjects, name)
        return NatsBucket(self._jetstream, stream.name, prefix, self._run_pull)

    async def put_blob(self, data: bytes) -> str:
        return await self._blobs.put(data)

    async def get_blob(self, digest: str) -> bytes:
        return await self._blobs.get(digest)

    async def ensure(self) -> None:
        deadline = anyio.current_time() + STREAMS_TIMEOUT_S
        while True:
            try:
                await self._ensure()
            except BusUnavailable as error:
                # Who makes the streams may come yet, and a cluster that has just begun has no leader for a while.
                if isinstance(error, NoJetStream) or anyio.current_time() >= deadline:
                    raise
                await anyio.sleep(STREAMS_RETRY_S)
            else:
                self._is_ensured = True
                return

    def on_reconnect(self, restore: Callable[[], Awaitable[None]]) -> None:
        self._restores.append(restore)

    async def restore(self, is_new_server: bool) -> None:
        """Bring back what the broker may have lost; for the link, after each reconnect."""
        if self._link.is_same_cluster:
            self._resume()
        if is_new_server and self._is_ensured:
            try:
                await self._ensure()
            except StreamMismatch as error:
                log.error("stream.mismatched", reason=str(error))
        if not self._link.is_same_cluster:
            self._resume()
        for restore in self._restores:
            try:
                with anyio.fail_after(RESTORE_TIMEOUT_S):
                    await restore()
            except Exception as error:
                log.error("bus.restore_failed", exc_info=error)

    def _resume(self) -> None:
        self._link.mark_ready()
        for pull in self._pulls:
            pull.reset()

    async def _ensure(self) -> None:
        for declared in self._declared.values():
            await self._ensure_one(declared)

    async def _ensure_one(self, declared: Declared) -> None:
        try:
            found = await self._jetstream.find_stream(declared.name)
        except BusUnavailable as unavailable:
            if not self._is_expendable(declared):
                raise
            log.warning("stream.unavailable", stream=declared.name, reason=str(unavailable))
            return
        if not self._link.access.is_owner:
            self._check_made(declared, found)
            return
        if found is None:
            error = await self._jetstream.create_stream(declared.settings)
            if error is None:
                log.info("stream.created", stream=declared.name)
                return
            # Another process may have been faster.
            found = await self._jetstream.find_stream(declared.name)
            if found is None:
                raise to_error(f"{declared.kind} {declared.name}", error)
        differences = streams.compare(declared, found)
        if not differences:
            return
        if any(difference.is_fixed for difference in differences):
            raise StreamMismatch(streams.describe_mismatch(declared, differences, "The server cannot change that."))
        error = await self._jetstream.update_stream({**found, **declared.settings})
        if error is not None:
            reason = f"The server says: {error.description} ({error.err_code})."
            raise StreamMismatch(streams.describe_mismatch(declared, differences, reason))
        log.info("stream.updated", stream=declared.name, fields=[difference.field for difference in differences])

    def _is_expendable(self, declared: Declared) -> bool:
        """Whether it is the only copy, on one broker of several: away with it, and made good by those who filled it."""
        return self._max_replicas > 1 and not declared.has_copies

    def _check_made(self, declared: Declared, found: Mapping[str, object] | None) -> None:
        """Leave making and changing to the owners of streams; raise `StreamMissing` or `StreamMismatch`."""
        if found is None:
            raise StreamMissing(f"{declared.kind} {declared.name} is not there yet: start a frontend, which makes it")
        fixed = [difference for difference in streams.compare(declared, found) if difference.is_fixed]
        if fixed:
            raise StreamMismatch(streams.describe_mismatch(declared, fixed, "The server cannot change that."))

    def _find_declared(self, kind: str, short: str) -> Declared:
        try:
            return self._declared[kind, short]
        except KeyError:
            known = ", ".join(name for other, name in self._declared if other == kind)
            raise BadConfig(f"no {kind} {short!r} is declared in nats/; known: {known}") from None

    @asynccontextmanager
    async def _run_pull(self, pull: StandingPull) -> AsyncIterator[None]:
        await self._link.wait_ready(API_TIMEOUT_S)
        scope = anyio.CancelScope()

        async def keep() -> None:
            with scope:
                await pull.keep()

        try:
            await pull.start()
            self._pulls.add(pull)
            self._tasks.start_soon(keep)
            yield
        finally:
            self._pulls.discard(pull)
            scope.cancel()
            pull.stop()


@asynccontextmanager
async def open_bus(
    config: BusConfig, subjects: Subjects, *, name: str, has_echo: bool = True
) -> AsyncIterator[NatsBus]:
    """Connect as `name`, stay connected, and close when the context is left: what was published is sent first.

    Without `has_echo`, what is published on this connection does not come to its own subscriptions; what is stored in
    streams does. It saves a process that listens to its kind half of what wakes it.
    Raises `BusUnavailable` when no broker answers within `config.connect_timeout_s`, `BadConfig`.
    """
    declared = load_declared(subjects, max_replicas=config.replicas)
    link = Link(config, subjects, name, has_echo=has_echo)
    await link.open()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        bus = NatsBus(link, subjects, declared, tasks, max_replicas=config.replicas)
        tasks.start_soon(link.keep, bus.restore)
        try:
            yield bus
        except Exception as error:
            # Kept, not raised: a task group would wrap it, and callers look for its class.
            failure = error
        finally:
            await link.close()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
