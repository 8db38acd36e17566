"""I/O. A key-value bucket in memory, in the time of the event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from bus.errors import Conflict
from bus.protocol import Entry
from bus.replica import SETTLE_S, Replica, check_key
from bus.testing.pull import Connection
from bus.testing.timers import call_later

Checkpoint = Callable[[], Awaitable[None]]
"""Lets others run; raises `BusUnavailable` when the broker is away."""


class MemoryStore:
    """The content of one bucket, shared by all connections."""

    def __init__(self, *, is_memory: bool) -> None:
        self.is_memory = is_memory
        self.live: dict[str, Entry] = {}
        self.watchers: list[MemoryWatch] = []
        self._revision = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def write(self, key: str, value: bytes | None, ttl_s: int | None = None) -> int:
        """Put, or remove with None; tell the watchers."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        self._revision += 1
        entry = Entry(key, value, self._revision)
        if value is None:
            self.live.pop(key, None)
        else:
            self.live[key] = entry
            if ttl_s is not None:
                self._timers[key] = call_later(max(1, ttl_s), self.write, key, None)
        for watcher in self.watchers:
            watcher.send(entry)
        return self._revision

    def clear(self) -> None:
        """Forget everything without a word, as a server does that kept it in memory and died."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.live.clear()
        self._revision = 0


class MemoryWatch:
    """One watcher: hands over entries in the turn of its connection."""

    def __init__(self, store: MemoryStore, handler: Callable[[Entry], None], connection: Connection) -> None:
        self._store = store
        self._handler = handler
        self.connection = connection
        self._replica = Replica()
        self._is_open = True
        self._settling: asyncio.TimerHandle | None = None

    def send(self, entry: Entry) -> None:
        if self.connection.is_connected:
            self.connection.post(lambda: self._take(entry), "")

    def read_again(self) -> None:
        """Compare all that is there with what was told before; what is missing has a while to come back."""
        self.connection.post(self._begin, "")
        for entry in list(self._store.live.values()):
            self.send(entry)

    def close(self) -> None:
        self._is_open = False
        if self._settling is not None:
            self._settling.cancel()

    def _begin(self) -> None:
        """Behind all that was told before: it may have waited for long, in a process that stood still."""
        if self._is_open:
            self._replica.begin()
            if self._settling is not None:
                self._settling.cancel()
            self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settle)

    def _settle(self) -> None:
        for entry in self._replica.settle():
            self._handler(entry)

    def _take(self, entry: Entry) -> None:
        if self._is_open and self._replica.accept(entry):
            self._handler(entry)


class MemoryBucket:
    """A bucket as one connection sees it."""

    def __init__(self, store: MemoryStore, connection: Connection, checkpoint: Checkpoint) -> None:
        self._store = store
        self._connection = connection
        self._checkpoint = checkpoint

    async def get(self, key: str) -> Entry | None:
        await self._checkpoint()
        return self._store.live.get(check_key(key))

    async def put(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        await self._checkpoint()
        return self._store.write(check_key(key), value, ttl_s)

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        await self._checkpoint()
        found = self._store.live.get(check_key(key))
        if (found.revision if found else 0) != revision:
            raise Conflict(f"{key}: wrong last sequence: {found.revision if found else 0} (10071)")
        return self._store.write(key, value)

    async def delete(self, key: str) -> None:
        await self._checkpoint()
        self._store.write(check_key(key), None)

    async def entries(self) -> list[Entry]:
        await self._checkpoint()
        return list(self._store.live.values())

    @asynccontextmanager
    async def watch(self, handler: Callable[[Entry], None]) -> AsyncIterator[None]:
        await self._checkpoint()
        watch = MemoryWatch(self._store, handler, self._connection)
        for entry in list(self._store.live.values()):
            watch.send(entry)
        self._store.watchers.append(watch)
        is_read = anyio.Event()
        self._connection.post(is_read.set, "")
        try:
            await is_read.wait()
            yield
        finally:
            self._store.watchers.remove(watch)
            watch.close()
