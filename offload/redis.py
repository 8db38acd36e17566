"""I/O. Blocks in a Redis (or Valkey) server: a string each, which the server drops at its age or by its own rules.

Where `maxmemory` is set, the policy `volatile-ttl` lets what was pinned, which lives longer, stay longest.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio

from offload.key import BlockKey, Space, object_name, parse_object_name
from offload.resp import Address, Connection, Reply, parse_url
from offload.store import Blob, Got, Listed, StoreName, TierUnavailable

PREFIX = b"busway:"
NUM_CONNECTIONS = 2
"""The server has one thread; a second connection keeps it busy while the bytes of the first are copied."""
CHUNK_BYTES = 4 * 2**20
"""Moved by one command, or a few in one go; the server serves nobody else meanwhile."""
MAX_CHUNK = 512

S = TypeVar("S")
T = TypeVar("T")


class RedisStore:
    """Connections are made when they are needed, and thrown away after a failure."""

    name: StoreName = "redis"

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """`timeout_s` bounds each call, the wait for a free connection included; raise `BadConfig` for a wrong URL."""
        self._address = parse_url(url)
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(NUM_CONNECTIONS, "redis")
        self._turns = anyio.Semaphore(NUM_CONNECTIONS)
        self._idle: list[Connection] = []

    @property
    def location(self) -> str:
        return self._address.location

    @property
    def check(self) -> str:
        at = f"-s {self._address.path}" if self._address.path else f"-h {self._address.host} -p {self._address.port}"
        return f"redis-cli {at} ping"

    async def put(self, blobs: Sequence[Blob], keep_s: float) -> list[bool]:
        keep_ms = _milliseconds(keep_s)

        def put(connection: Connection, part: Sequence[Blob]) -> list[bool]:
            return connection.set_all([_name(blob.key) for blob in part], [blob.view for blob in part], keep_ms)

        return await self._in_parts(blobs, _chunk_size(blobs), put)

    async def get(self, blobs: Sequence[Blob]) -> list[Got]:
        def get(connection: Connection, part: Sequence[Blob]) -> list[Got]:
            done = connection.get_all([_name(blob.key) for blob in part], [blob.view for blob in part])
            return [Got.ALL if is_there else Got.ABSENT for is_there in done]

        return await self._in_parts(blobs, _chunk_size(blobs), get)

    async def has(self, keys: Sequence[BlockKey]) -> list[bool]:
        def has(connection: Connection, part: Sequence[BlockKey]) -> list[bool]:
            return [reply == 1 for reply in connection.call_all([(b"EXISTS", _name(key)) for key in part])]

        return await self._in_parts(keys, MAX_CHUNK, has)

    async def keep(self, keys: Sequence[BlockKey], keep_s: float) -> list[bool]:
        keep_ms = b"%d" % _milliseconds(keep_s)

        def keep(connection: Connection, part: Sequence[BlockKey]) -> list[bool]:
            names = [_name(key) for key in part]
            connection.call_all([(b"PEXPIRE", name, keep_ms, b"GT") for name in names])
            return [reply == 1 for reply in connection.call_all([(b"EXISTS", name) for name in names])]

        return await self._in_parts(keys, MAX_CHUNK, keep)

    async def delete(self, keys: Sequence[BlockKey]) -> int:
        def delete(connection: Connection, part: Sequence[BlockKey]) -> list[Reply]:
            return [connection.call(b"UNLINK", *map(_name, part))]

        counts = await self._in_parts(keys, MAX_CHUNK, delete)
        return sum([count for count in counts if isinstance(count, int)])

    async def listing(self, space: Space | None = None) -> AsyncGenerator[list[Listed], None]:
        pattern = PREFIX + (space.hex().encode() if space is not None else b"") + b"*"
        cursor: bytes | None = b"0"
        while cursor is not None:

            def scan(connection: Connection, at: bytes = cursor) -> tuple[bytes | None, list[Listed]]:
                return _scan(connection, at, pattern)

            cursor, listed = await self._run(scan)
            yield listed

    async def forget_pins(self, now: float) -> None:
        """There is nothing to remove: a pin is the time of its block."""

    async def aclose(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._threads.shutdown(wait=False)

    async def _in_parts(
        self, items: Sequence[S], size: int, work: Callable[[Connection, Sequence[S]], Sequence[T]]
    ) -> list[T]:
        """Do the work for some items after the others, several parts at a time, within the time limit for all."""
        parts = [items[first : first + size] for first in range(0, len(items), size)]
        if not parts:
            return []
        results: list[Sequence[T]] = [()] * len(parts)
        failures: list[TierUnavailable] = []

        async def do(position: int) -> None:
            part = parts[position]
            try:
                results[position] = await self._run(lambda connection: work(connection, part))
            except TierUnavailable as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for position in range(len(parts)):
                tasks.start_soon(do, position)
        if failures:
            raise failures[0]
        return [result for part in results for result in part]

    async def _run(self, work: Callable[[Connection], T]) -> T:
        """Do the work with a connection in a thread; when this returns, the thread has finished with it."""
        with anyio.move_on_after(self._timeout_s) as scope:
            async with self._turns:
                return await self._run_now(work)
        assert scope.cancelled_caught
        raise TierUnavailable(f"{self.location} took longer than {self._timeout_s:g} s")

    async def _run_now(self, work: Callable[[Connection], T]) -> T:
        used = _Use(self._address, self._timeout_s, self._idle.pop() if self._idle else None)
        future = asyncio.get_running_loop().run_in_executor(self._threads, used.run, work)
        try:
            result = await asyncio.shield(future)
        except asyncio.CancelledError:
            used.abort()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # it failed because of us
            used.close()
            raise
        if used.connection is not None:
            self._idle.append(used.connection)
        return result


class _Use:
    """One piece of work with a connection, in a thread."""

    def __init__(self, address: Address, timeout_s: float, connection: Connection | None) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._is_aborted = False
        self.connection = connection

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do the work; a connection that was at rest may be dead (the server was restarted), so a new one may try."""
        was_idle = self.connection is not None
        try:
            return self._run(work)
        except TierUnavailable:
            if not was_idle or self._is_aborted:
                raise
        return self._run(work)

    def abort(self) -> None:
        """Let the work fail soon; called from another thread."""
        self._is_aborted = True
        if self.connection is not None:
            self.connection.abort()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self.connection is None:
            self.connection = Connection(self._address, self._timeout_s)
        if self._is_aborted:
            self.connection.abort()  # it was not there when we were told
        try:
            return work(self.connection)
        except BaseException:
            self.close()
            raise


def _scan(connection: Connection, cursor: bytes, pattern: bytes) -> tuple[bytes | None, list[Listed]]:
    """Return where to go on, None at the end, and some of the blocks."""
    reply = connection.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % MAX_CHUNK)
    if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[0], bytes):
        raise TierUnavailable("SCAN was answered by something else")
    names = [name for name in reply[1] if isinstance(name, bytes)] if isinstance(reply[1], list) else []
    facts = connection.call_all([(verb, name) for name in names for verb in (b"STRLEN", b"PTTL")])
    now, listed = time.time(), []
    for position, name in enumerate(names):
        key = parse_object_name(name.removeprefix(PREFIX).decode("ascii", "replace"))
        num_bytes, left_ms = facts[2 * position], facts[2 * position + 1]
        if key is not None and isinstance(num_bytes, int) and isinstance(left_ms, int) and num_bytes:
            listed.append(Listed(key, num_bytes, now + left_ms / 1000 if left_ms >= 0 else float("inf")))
    return (None if reply[0] == b"0" else reply[0]), listed


def _name(key: BlockKey) -> bytes:
    return PREFIX + object_name(key).encode()


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _chunk_size(blobs: Sequence[Blob]) -> int:
    return max(1, min(MAX_CHUNK, CHUNK_BYTES // max(1, len(blobs[0].view)))) if blobs else 1
