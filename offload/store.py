"""Pure. What a store that workers share is to its tier: Redis, or an object store."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from enum import Enum
from typing import Literal, NamedTuple, Protocol

from bus.errors import Retryable
from offload.key import BlockKey, Space

StoreName = Literal["redis", "s3"]


class TierUnavailable(Retryable):
    """A store did not do what it was asked: it is down, too slow, or refuses."""

    code = "tier_unavailable"


class Blob(NamedTuple):
    """A frame and its name."""

    key: BlockKey
    view: memoryview


class Got(Enum):
    """What became of one block that was asked for."""

    ALL = 0
    """Its bytes are in the view."""
    ABSENT = 1
    """It is not there, or of another length."""
    FAILED = 2
    """Nothing is known: the store failed before it came to this one."""


class Listed(NamedTuple):
    """A block as a store lists it."""

    key: BlockKey
    num_bytes: int
    expires_at: float
    """Unix seconds; the store may drop it before, for want of room."""


class Store(Protocol):
    """Named bytes that outlive this process. Everything raises `TierUnavailable`, within the store's time limit.

    However a call ends, by a cancel too, nobody touches its views afterwards.
    """

    @property
    def name(self) -> StoreName: ...

    @property
    def location(self) -> str:
        """Where it is, for people and for telling stores apart; no secrets."""

    @property
    def check(self) -> str:
        """Command by which a person sees whether the store answers."""

    async def put(self, blobs: Sequence[Blob], keep_s: float) -> list[bool]:
        """Keep each for `keep_s`; False: there is no room."""

    async def get(self, blobs: Sequence[Blob]) -> list[Got]:
        """Fill the views."""

    async def has(self, keys: Sequence[BlockKey]) -> list[bool]: ...

    async def keep(self, keys: Sequence[BlockKey], keep_s: float) -> list[bool]:
        """Let what is there stay for `keep_s` from now, longer if it would stay longer; False: not there."""

    async def delete(self, keys: Sequence[BlockKey]) -> int:
        """Remove; return how many were there, or may have been where the store does not tell."""

    async def forget_pins(self, now: float) -> None:
        """Remove what only remembers pins that have passed by `now`, unix seconds."""

    def listing(self, space: Space | None = None) -> AsyncGenerator[list[Listed], None]:
        """Iterate over what is there, of one space or of all, some hundreds at a time."""

    async def aclose(self) -> None:
        """Close what is open; what is under way fails."""


def owner_of(store: Store, fingerprint: str) -> str:
    """Return the name under which workers tell of a store: equal where they understand each other's bytes."""
    digest = hashlib.blake2b(f"{store.location}\n{fingerprint}".encode(), digest_size=4).hexdigest()
    return f"{store.name}-{digest}"
