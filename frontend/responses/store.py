"""I/O. Stored responses: in a bucket, so that any frontend can show and continue what another one made.

Keys begin with the tenant: nobody finds the responses of others. The bucket keeps them for a week, and lets the oldest
go when it is full (`nats/buckets/RESPONSES.json`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from bus.codec import codec, encode
from bus.errors import BuswayError, InvalidRequest, Malformed, Permanent
from bus.messages.responses import StoredResponse
from bus.protocol import Bus
from bus.subjects import slug
from frontend.responses.answers import owner_of

BUCKET = "RESPONSES"
MAX_STORED_BYTES = 4 * 2**20 - 2**16
"""Input and response of one entry; the bucket takes a little more."""
MAX_INPUT_BYTES = MAX_STORED_BYTES // 2
"""Of a response that is to be stored: what is left is for its output."""
MAX_TURNS = 1_000
"""Stored responses of one conversation that are read to continue it."""


class NoSuchResponse(Permanent):
    """No such response is stored, for this tenant."""

    code = "not_found"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Found(NamedTuple):
    """An entry, and where it is."""

    key: str
    stored: StoredResponse
    revision: int


class Kept(msgspec.Struct, frozen=True):
    """Of a response, what a conversation goes on from."""

    output: list[msgspec.Raw] = []


log = structlog.get_logger()

_decode = codec(StoredResponse).decode
_kept = msgspec.json.Decoder(Kept)
_items = msgspec.json.Decoder(list[msgspec.Raw])


class ResponseStore:
    """The bucket, by tenant and id."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = bus.bucket(BUCKET)

    async def put(self, response: str, stored: StoredResponse) -> None:
        """Write; raise `BusUnavailable`, or `Malformed` for what is too large."""
        data = encode(stored)
        if len(data) > MAX_STORED_BYTES:
            raise Malformed(f"response {response} has {len(data)} bytes: at most {MAX_STORED_BYTES} are stored")
        await self._bucket.put(_key(stored.tenant, response), data)

    async def save(self, response: str, stored: StoredResponse) -> None:
        """Write what was made, or log why not: the answer is the client's in any case."""
        try:
            await self.put(response, stored)
        except BuswayError as error:
            log.warning("response.unsaved", response=response, reason=str(error)[:200])

    async def find(self, tenant: str, response: str) -> Found | None:
        """Return an entry as it is in the bucket."""
        if owner_of(response) is None:
            return None
        key = _key(tenant, response)
        entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            return None
        stored = _decode(entry.value)
        # Two tenants may share a slug: the entry itself says whose it is.
        return Found(key, stored, entry.revision) if stored.tenant == tenant else None

    async def replace(self, found: Found, stored: StoredResponse) -> None:
        """Write if nobody wrote since; raise `Conflict`."""
        await self._bucket.update(found.key, encode(stored), revision=found.revision)

    async def delete(self, found: Found) -> None:
        """Remove."""
        await self._bucket.delete(found.key)

    async def conversation(self, last: Found, *, limit_bytes: int) -> list[msgspec.Raw]:
        """Return all items up to and with those of a response, oldest first.

        Raises `NoSuchResponse` when an earlier one is gone, `InvalidRequest` when they are too many.
        """
        turns = [last.stored]
        num_bytes = len(last.stored.input) + len(last.stored.response)
        while turns[-1].previous:
            before = await self.find(last.stored.tenant, turns[-1].previous)
            if before is None:
                raise NoSuchResponse(
                    f"The conversation cannot be continued: its earlier response {turns[-1].previous!r} was deleted, "
                    "or is older than the week for which responses are kept. Send the whole conversation as 'input'."
                )
            turns.append(before.stored)
            num_bytes += len(before.stored.input) + len(before.stored.response)
            if len(turns) > MAX_TURNS or num_bytes > limit_bytes:
                raise InvalidRequest(
                    f"The conversation is too long to be continued: at most {MAX_TURNS} turns and {limit_bytes} bytes.",
                    param="previous_response_id",
                )
        return [item for turn in reversed(turns) for item in (*_items.decode(turn.input), *output_items(turn))]


def output_items(stored: StoredResponse) -> Sequence[msgspec.Raw]:
    """Return the items that a response came to."""
    return _kept.decode(stored.response).output


def _key(tenant: str, response: str) -> str:
    return f"{slug(tenant)}.{response}"
