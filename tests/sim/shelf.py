"""I/O (in memory). A store that all workers share: it fails, forgets, and flips bytes as the weather is."""

from collections.abc import AsyncGenerator, Callable, Sequence

import anyio

from offload.key import BlockKey, Space
from offload.store import Blob, Got, Listed, StoreName, TierUnavailable
from tests.sim.weather import Weather


class Shelf:
    """What is stored, and until when, whoever stored it."""

    def __init__(self, weather: Weather, wall: Callable[[], float]) -> None:
        self.weather = weather
        self.wall = wall
        self.blobs: dict[BlockKey, tuple[bytes, float]] = {}

    def find(self, key: BlockKey) -> bytes | None:
        """Return what is there under a name."""
        blob, until = self.blobs.get(key, (None, 0.0))
        return blob if until > self.wall() else None


class ShelfStore:
    """Implements `offload.store.Store`: one worker's way to the shelf."""

    name: StoreName = "redis"
    location = "memory"
    check = "look at the shelf"

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def put(self, blobs: Sequence[Blob], keep_s: float) -> list[bool]:
        """Keep each for `keep_s`."""
        await self._reach()
        until = self._shelf.wall() + keep_s
        for blob in blobs:
            self._shelf.blobs[blob.key] = (bytes(blob.view), until)
        return [True] * len(blobs)

    async def get(self, blobs: Sequence[Blob]) -> list[Got]:
        """Fill the views, some of them with wrong bytes."""
        await self._reach()
        got = []
        for blob in blobs:
            found = self._shelf.find(blob.key)
            if found is None or len(found) != len(blob.view):
                got.append(Got.ABSENT)
                continue
            blob.view[:] = found
            if self._shelf.weather.flips(blob.key):
                blob.view[-1] ^= 1
            got.append(Got.ALL)
        return got

    async def has(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Say which are there."""
        await self._reach()
        return [self._shelf.find(key) is not None for key in keys]

    async def keep(self, keys: Sequence[BlockKey], keep_s: float) -> list[bool]:
        """Let what is there stay for longer."""
        there = await self.has(keys)
        until = self._shelf.wall() + keep_s
        for key, is_there in zip(keys, there, strict=True):
            if is_there:
                blob, before = self._shelf.blobs[key]
                self._shelf.blobs[key] = (blob, max(before, until))
        return there

    async def delete(self, keys: Sequence[BlockKey]) -> int:
        """Remove."""
        await self._reach()
        return sum(self._shelf.blobs.pop(key, None) is not None for key in keys)

    async def forget_pins(self, now: float) -> None:
        """Remember no pins."""

    async def listing(self, space: Space | None = None) -> AsyncGenerator[list[Listed], None]:
        """Iterate over what is there."""
        await self._reach()
        yield [
            Listed(key, len(blob), until)
            for key, (blob, until) in self._shelf.blobs.items()
            if space is None or key.space == space
        ]

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _reach(self) -> None:
        await anyio.sleep(self._shelf.weather.store_s())
        if self._shelf.weather.store_fails():
            raise TierUnavailable("the store does not answer")
