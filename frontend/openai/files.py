"""Pure. What `/v1/files` and `/v1/batches` show, and pages of lists."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import parse_qs

import msgspec

from bus.errors import InvalidRequest
from bus.messages.batches import StoredFile

MAX_PAGE = 10_000


class FileShown(msgspec.Struct, frozen=True):
    """A file."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"


class FileDeleted(msgspec.Struct, frozen=True):
    """The answer to a deletion."""

    id: str
    object: str = "file"
    deleted: bool = True


T = TypeVar("T")


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list."""

    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Page(NamedTuple):
    """Which part of a list is wanted."""

    limit: int
    after: str
    is_newest_first: bool
    purpose: str


def show_file(file: str, stored: StoredFile) -> FileShown:
    """Return a file as clients see it."""
    return FileShown(
        file, stored.num_bytes, int(stored.created_at), int(stored.expires_at), stored.filename, stored.purpose
    )


def read_page(query: bytes, default: int) -> Page:
    """Read `limit`, `after`, `order` and `purpose` of a query; raise `InvalidRequest` that names the wrong one."""
    given = {name: values[-1] for name, values in parse_qs(query.decode("latin-1"), max_num_fields=32).items()}
    limit = given.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 5 and 1 <= int(limit) <= MAX_PAGE):
        raise InvalidRequest(f"Invalid value for 'limit': a number from 1 to {MAX_PAGE}.", param="limit")
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("Invalid value for 'order': 'asc' or 'desc'.", param="order")
    return Page(int(limit), given.get("after", ""), order == "desc", given.get("purpose", ""))


def render_page(ids: Sequence[str], shown: Sequence[object], page: Page) -> bytes:
    """Render a page of what is given with the newest first; raise `InvalidRequest` for an unknown `after`."""
    entries = list(zip(ids, shown, strict=True))
    if not page.is_newest_first:
        entries.reverse()
    start = 0
    if page.after:
        order = [each for each, _ in entries]
        if page.after not in order:
            raise InvalidRequest(f"There is no {page.after[:100]!r} to list from.", param="after")
        start = order.index(page.after) + 1
    cut = entries[start : start + page.limit]
    first, last = (cut[0][0], cut[-1][0]) if cut else (None, None)
    return msgspec.json.encode(Listing([each for _, each in cut], first, last, start + page.limit < len(entries)))
