"""I/O. Blocks in an object store: S3 and what speaks like it, Azure, Google Cloud, an object each.

Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
`AZURE_STORAGE_ACCOUNT_KEY`, `GOOGLE_SERVICE_ACCOUNT`, ...), never from configuration. Such a store drops nothing by
itself: `busway cache gc` removes what is older than its time, unless a marker `pins/<unix seconds>/<name>` says that it
is to stay longer.
"""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import anyio
import obstore
import obstore.exceptions
from obstore.store import from_url

from bus.errors import BadConfig
from offload.key import BlockKey, Space, object_name, parse_object_name
from offload.store import Blob, Got, Listed, StoreName, TierUnavailable

if TYPE_CHECKING:  # they exist for type checkers only
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

PINS = "pins"
NUM_CONCURRENT = 32
"""Requests in flight of one call."""
MAX_RETRIES = 2
LIST_CHUNK = 1000
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
"""Variables that name a server; one without TLS is for tests and for networks that are trusted."""
METADATA_HOST = "169.254.169.254"
"""Where machines in clouds get credentials, asked when the environment has none."""
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")

S = TypeVar("S")


class ObjectStore:
    """One bucket, or a prefix in it."""

    name: StoreName = "s3"

    def __init__(self, url: str, *, keep_s: float, timeout_s: float) -> None:
        """`keep_s` is the time after which `gc` may remove an object; `timeout_s` bounds each call.

        Raises `BadConfig` for a URL of another kind, and for what the environment has wrong.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc or "@" in parts.netloc or parts.query:
            raise BadConfig("offload.s3.url is an address like s3://bucket/prefix, az://... or gs://..., no more")
        limit = timedelta(seconds=timeout_s)
        client: ClientConfig = {
            "timeout": limit,
            "connect_timeout": min(limit, timedelta(seconds=1)),
            "allow_http": any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS),
        }
        retry: RetryConfig = {
            "max_retries": MAX_RETRIES,
            "retry_timeout": limit,
            "backoff": {"init_backoff": timedelta(milliseconds=20), "max_backoff": limit, "base": 3},
        }
        # Under TLS a signed digest of each body adds nothing but a third of the CPU that a block takes.
        is_signed = client["allow_http"] or parts.scheme not in ("s3", "s3a")
        options: S3Config | None = None if is_signed else {"unsigned_payload": True}
        try:
            self._store = from_url(url, config=options, client_options=client, retry_config=retry)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise BadConfig(f"offload.s3.url = {url}: {error}") from error
        self.location = url.rstrip("/")
        self._keep_s = keep_s
        self._timeout_s = timeout_s

    @property
    def check(self) -> str:
        scheme, _, place = self.location.partition("://")
        if scheme.startswith("s3"):
            return f"aws s3 ls s3://{place}/"
        if scheme == "gs":
            return f"gcloud storage ls {self.location}"
        return f"az storage blob list --container-name {place.partition('/')[0]}"

    async def put(self, blobs: Sequence[Blob], keep_s: float) -> list[bool]:
        async def put(blob: Blob) -> bool:
            # A copy: the library's own threads may read on after a cancel.
            await obstore.put_async(self._store, object_name(blob.key), bytes(blob.view), use_multipart=False)
            return True

        done = await self._for_all(blobs, put)
        if keep_s > self._keep_s:
            await self._mark([blob.key for blob, is_there in zip(blobs, done, strict=True) if is_there], keep_s)
        return done

    async def get(self, blobs: Sequence[Blob]) -> list[Got]:
        async def get(blob: Blob) -> bool:
            length = len(blob.view)
            data = await obstore.get_range_async(self._store, object_name(blob.key), start=0, length=length)
            if len(data) != length:
                return False
            blob.view[:] = memoryview(data).cast("B")
            return True

        return await self._try_all(blobs, get)

    async def has(self, keys: Sequence[BlockKey]) -> list[bool]:
        async def has(key: BlockKey) -> bool:
            await obstore.head_async(self._store, object_name(key))
            return True

        return await self._for_all(keys, has)

    async def keep(self, keys: Sequence[BlockKey], keep_s: float) -> list[bool]:
        oldest, short = time.time() + keep_s - self._keep_s, list[BlockKey]()

        async def look(key: BlockKey) -> bool:
            meta = await obstore.head_async(self._store, object_name(key))
            if meta["last_modified"].timestamp() < oldest:
                short.append(key)
            return True

        there = await self._for_all(keys, look)
        await self._mark(short, keep_s)
        return there

    async def delete(self, keys: Sequence[BlockKey]) -> int:
        await self._delete([object_name(key) for key in keys])
        return len(keys)

    async def listing(self, space: Space | None = None) -> AsyncGenerator[list[Listed], None]:
        pinned = await self._pins()
        async with aclosing(self._metas(space.hex() if space is not None else None)) as parts:
            async for part in parts:
                listed = []
                for meta in part:
                    key = parse_object_name(meta["path"])
                    if key is not None:
                        expires_at = meta["last_modified"].timestamp() + self._keep_s
                        listed.append(Listed(key, meta["size"], max(expires_at, pinned.get(key, 0.0))))
                yield listed

    async def forget_pins(self, now: float) -> None:
        await self._delete([f"{PINS}/{until}/{name}" for until, name in await self._markers() if until <= now])

    async def aclose(self) -> None:
        """There is nothing to close: connections are dropped with the store."""

    async def _pins(self) -> dict[BlockKey, float]:
        pinned: dict[BlockKey, float] = {}
        for until, name in await self._markers():
            key = parse_object_name(name)
            if key is not None:
                pinned[key] = max(until, pinned.get(key, 0.0))
        return pinned

    async def _markers(self) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        async for part in self._metas(PINS):
            for meta in part:
                until, _, name = meta["path"].removeprefix(f"{PINS}/").partition("/")
                if until.isdecimal():
                    found.append((int(until), name))
        return found

    async def _mark(self, keys: Sequence[BlockKey], keep_s: float) -> None:
        until = int(time.time() + keep_s) + 1

        async def mark(key: BlockKey) -> bool:
            await obstore.put_async(self._store, f"{PINS}/{until}/{object_name(key)}", b"", use_multipart=False)
            return True

        await self._for_all(keys, mark)

    async def _delete(self, names: Sequence[str]) -> None:
        for first in range(0, len(names), LIST_CHUNK):
            part = names[first : first + LIST_CHUNK]
            await self._bounded(partial(obstore.delete_async, self._store, part))

    async def _metas(self, prefix: str | None) -> "AsyncGenerator[Sequence[ObjectMeta], None]":
        stream = obstore.list(self._store, prefix, chunk_size=LIST_CHUNK)
        while (part := await self._bounded(lambda: anext(stream, None))) is not None:
            yield part

    async def _bounded(self, call: Callable[[], Awaitable[S]]) -> S:
        try:
            with anyio.fail_after(self._timeout_s):
                return await call()
        except TimeoutError:
            raise TierUnavailable(f"{self.location} took longer than {self._timeout_s:g} s") from None
        except (obstore.exceptions.BaseError, OSError) as error:
            raise TierUnavailable(f"{self.location}: {_reason(error)}") from error

    async def _for_all(self, items: Sequence[S], do: Callable[[S], Awaitable[bool]]) -> list[bool]:
        return [got is Got.ALL for got in await self._try_all(items, do)]

    async def _try_all(self, items: Sequence[S], do: Callable[[S], Awaitable[bool]]) -> list[Got]:
        """Do something for all items, some at a time, until one fails; raise if nothing at all was answered."""
        got = [Got.FAILED] * len(items)
        failures: list[str] = []
        places = iter(range(len(items)))

        async def work() -> None:
            for place in places:
                try:
                    got[place] = Got.ALL if await do(items[place]) else Got.ABSENT
                except (obstore.exceptions.BaseError, OSError) as error:
                    if _is_absent(error):
                        got[place] = Got.ABSENT
                    else:
                        failures.append(_reason(error))
                if failures:
                    tasks.cancel_scope.cancel()

        with anyio.move_on_after(self._timeout_s) as scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(NUM_CONCURRENT, len(items))):
                    tasks.start_soon(work)
        if scope.cancelled_caught:
            failures.append(f"took longer than {self._timeout_s:g} s")
        if failures and all(each is Got.FAILED for each in got):
            raise TierUnavailable(f"{self.location}: {failures[0]}")
        return got


def _is_absent(error: Exception) -> bool:
    """Say whether there is no such object, or an empty one, of which no range can be had."""
    if isinstance(error, FileNotFoundError | obstore.exceptions.NotFoundError):
        return "NoSuchBucket" not in str(error)
    return "416 Range Not Satisfiable" in str(error)


def _reason(error: Exception) -> str:
    """Return one line for people; what the library tells is long and begins with what matters least."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "NoSuchBucket" in text:
        return "there is no such bucket (NoSuchBucket)"
    if METADATA_HOST in text:
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
    return text.removeprefix("Generic S3 error: ")[:300]
