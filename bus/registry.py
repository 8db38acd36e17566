"""I/O. Who is there: each process keeps its own cards in the bucket REG, everybody else watches them."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import msgspec
import structlog

from bus.codec import codec, encode
from bus.errors import BusUnavailable, BuswayError, Malformed
from bus.metrics import MALFORMED_MESSAGES
from bus.protocol import Bus, Entry

log = structlog.get_logger()

REGISTRY = "REG"
TTL_S = 10
REFRESHES = 3
"""Refreshes within one time to live: two may be lost."""
LEAVE_TIMEOUT_S = 1.0

T = TypeVar("T", bound=msgspec.Struct)


def new_id(prefix: str) -> str:
    """Return an id that no other process has, fit for a subject token: `w-3fa94c1e`."""
    return f"{prefix}-{secrets.token_hex(4)}"


@asynccontextmanager
async def keep_card(
    bus: Bus, key: str, card: msgspec.Struct, *, ttl_s: int = TTL_S
) -> AsyncIterator[Callable[[msgspec.Struct], Awaitable[None]]]:
    """Keep the card of this process in the registry while the context is open, and remove it at the end.

    It is refreshed often enough to survive two lost writes and put again at once when the broker lost it. Entering
    raises what the first write raises; later failures are logged and tried again. Yields a function that puts another
    card in its place, and raises what that write raises: it is tried again.
    """
    try:
        async with keep_shared_card(bus, key, card, ttl_s=ttl_s) as replace:
            yield replace
    finally:
        # After the last refresh: one that came later would put the card back.
        with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_TIMEOUT_S):
            await _leave(bus, key)


@asynccontextmanager
async def keep_shared_card(
    bus: Bus, key: str, card: msgspec.Struct, *, ttl_s: int = TTL_S
) -> AsyncIterator[Callable[[msgspec.Struct], Awaitable[None]]]:
    """Keep a card that several processes keep (a model's): the last one lets it expire after `ttl_s`."""
    value = encode(card)
    bucket = bus.bucket(REGISTRY)
    is_open = True

    async def put_again() -> None:
        if is_open:
            await bucket.put(key, value, ttl_s=ttl_s)

    async def replace(card: msgspec.Struct) -> None:
        nonlocal value
        value = encode(card)
        await put_again()

    await bucket.put(key, value, ttl_s=ttl_s)
    bus.on_reconnect(put_again)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_refresh, key, put_again, ttl_s / REFRESHES)
        try:
            yield replace
        except Exception as error:
            # Kept, not raised: a task group would wrap it, and callers look for its class.
            failure = error
        finally:
            is_open = False
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def watch_cards(
    bus: Bus, family: str, card_type: type[T], handler: Callable[[str, T | None], None]
) -> AsyncIterator[None]:
    """Call `handler` with id and card of every `{family}.{id}` that is there, then of each that comes or goes (None).

    Entering waits for those that are there. A card that cannot be read is counted, logged once and skipped.
    """
    prefix = f"{family}."
    decode = codec(card_type).decode
    is_logged = False

    def on_entry(entry: Entry) -> None:
        nonlocal is_logged
        if not entry.key.startswith(prefix):
            return
        if entry.value is None:
            handler(entry.key.removeprefix(prefix), None)
            return
        try:
            card = decode(entry.value)
        except Malformed as error:
            MALFORMED_MESSAGES.labels(family="registry").inc()
            if not is_logged:
                is_logged = True
                log.warning("card.malformed", key=entry.key, reason=str(error)[:200], note="logged once")
            return
        handler(entry.key.removeprefix(prefix), card)

    async with bus.bucket(REGISTRY).watch(on_entry):
        yield


async def _refresh(key: str, put: Callable[[], Awaitable[None]], period_s: float) -> None:
    has_failed = False
    while True:
        await anyio.sleep(period_s)
        try:
            await put()
        except BuswayError as error:
            if not has_failed:
                log.warning("card.not_refreshed", key=key, reason=str(error))
            has_failed = True
        else:
            has_failed = False


async def _leave(bus: Bus, key: str) -> None:
    try:
        await bus.bucket(REGISTRY).delete(key)
    except BusUnavailable as error:
        log.warning("card.left_behind", key=key, reason=str(error))
