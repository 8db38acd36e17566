"""I/O. A key-value bucket on its stream: compatible with `nats kv`."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from bus import wire
from bus.errors import BusUnavailable, Conflict
from bus.jetstream import API_TIMEOUT_S, JetStream, publish_headers
from bus.protocol import Entry, Incoming
from bus.queue import EXPIRES_S, StandingPull
from bus.replica import SETTLE_S, Replica, check_key

MARKER_TTL_S = 10
"""How long the broker remembers a deletion, for watchers that look away meanwhile."""
_READ_AHEAD = 256

RunPull = Callable[[StandingPull], AbstractAsyncContextManager[None]]
"""Starts a pull and keeps it while the context is open."""


class NatsBucket:
    """One bucket."""

    def __init__(self, jetstream: JetStream, stream: str, prefix: str, run_pull: RunPull) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._prefix = prefix
        self._run_pull = run_pull

    async def get(self, key: str) -> Entry | None:
        entry = await self._get_last(key)
        return entry if entry is not None and entry.value is not None else None

    async def put(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        return await self._write(key, value, publish_headers(ttl_s=ttl_s))

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        try:
            return await self._write(key, value, publish_headers(last_subject_seq=revision))
        except Conflict:
            # A deleted key still has a revision: that of its deletion.
            last = await self._get_last(key) if revision == 0 else None
            if last is None or last.value is not None:
                raise
            return await self._write(key, value, publish_headers(last_subject_seq=last.revision))

    async def delete(self, key: str) -> None:
        headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": str(MARKER_TTL_S)}
        await self._write(key, b"", headers)

    async def entries(self) -> list[Entry]:
        live: dict[str, Entry] = {}

        def keep(entry: Entry) -> None:
            live[entry.key] = entry

        async with self.watch(keep):
            pass
        return [entry for entry in live.values() if entry.value is not None]

    @asynccontextmanager
    async def watch(self, handler: Callable[[Entry], None]) -> AsyncIterator[None]:
        watch = _Watch(self._jetstream, self._stream, self._prefix, handler)
        async with self._run_pull(watch.pull):
            try:
                async with asyncio.timeout(API_TIMEOUT_S):
                    await watch.is_complete.wait()
            except TimeoutError as error:
                raise BusUnavailable(f"bucket {self._stream}: not read within {API_TIMEOUT_S} s") from error
            try:
                yield
            finally:
                watch.close()

    async def _write(self, key: str, value: bytes, headers: dict[str, str] | None) -> int:
        await self._jetstream.link.wait_ready(API_TIMEOUT_S)
        ack = await self._jetstream.append(self._prefix + check_key(key), value, headers, API_TIMEOUT_S)
        return ack.stream_seq

    async def _get_last(self, key: str) -> Entry | None:
        await self._jetstream.link.wait_ready(API_TIMEOUT_S)
        incoming = await self._jetstream.read(f"{self._stream}.{self._prefix}{check_key(key)}", b"")
        headers = incoming.headers or {}
        revision = headers.get("Nats-Sequence", "")
        if not revision.isdigit():
            if headers.get(wire.STATUS) == "404":
                return None
            raise BusUnavailable(f"key {key}: {headers.get(wire.STATUS, '')} {headers.get(wire.DESCRIPTION, '')}")
        return Entry(key, None if is_deletion(incoming) else incoming.payload, int(revision))


def is_deletion(incoming: Incoming) -> bool:
    """Say whether a message of a bucket's stream tells that its key is gone."""
    headers = incoming.headers
    return headers is not None and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers)


class _Watch:
    """Reads a bucket through a consumer of its own, and through the next one when that is lost."""

    def __init__(self, jetstream: JetStream, stream: str, prefix: str, handler: Callable[[Entry], None]) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._prefix = prefix
        self._handler = handler
        self._replica = Replica()
        self._consumer = ""
        self._settling: asyncio.TimerHandle | None = None
        self.is_complete = asyncio.Event()
        self.pull = StandingPull(jetstream, stream, self._create, self._receive, on_idle=self._complete)
        self.pull.grant(_READ_AHEAD)

    def close(self) -> None:
        self._stop_settling()
        if self._consumer:
            self._jetstream.forget_consumer(self._stream, self._consumer)

    def _stop_settling(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    async def _create(self) -> str:
        self._stop_settling()
        self._replica.begin()
        reply = await self._jetstream.create_consumer(
            self._stream, name := f"watch-{secrets.token_hex(8)}", _config(name, f"{self._prefix}>")
        )
        if reply.num_pending == 0:
            self._complete()
        self._consumer = reply.name
        return reply.name

    def _receive(self, incoming: Incoming) -> None:
        position = wire.parse_position(incoming.reply)
        self.pull.grant(_READ_AHEAD)
        value = None if is_deletion(incoming) else incoming.payload
        entry = Entry(incoming.subject[len(self._prefix) :], value, position.stream_seq)
        try:
            if self._replica.accept(entry):
                self._handler(entry)
        finally:
            if position.pending == 0:
                self._complete()

    def _complete(self) -> None:
        self.is_complete.set()
        if self._replica.has_missing() and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settle)

    def _settle(self) -> None:
        self._settling = None
        for entry in self._replica.settle():
            try:
                self._handler(entry)
            except Exception as error:
                self._jetstream.link.troubles.handler_failed(self._prefix + entry.key, error)


def _config(name: str, filter_subject: str) -> dict[str, Any]:
    return {
        "name": name,
        "filter_subject": filter_subject,
        "ack_policy": "none",
        "deliver_policy": "last_per_subject",
        "max_waiting": 64,
        "num_replicas": 1,
        "mem_storage": True,
        "inactive_threshold": int(2 * EXPIRES_S * 1e9),
    }
