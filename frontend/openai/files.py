"""Pure. What `/v1/files` and `/v1/batches` show, and pages of lists."""

from typing import Generic, TypeVar

import msgspec

from bus.messages.batches import StoredFile
from frontend.pages import Cut

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


def show_file(file: str, stored: StoredFile) -> FileShown:
    """Return a file as clients see it."""
    return FileShown(
        file, stored.num_bytes, int(stored.created_at), int(stored.expires_at), stored.filename, stored.purpose
    )


def listing(cut: Cut[object]) -> bytes:
    """Render a page."""
    return msgspec.json.encode(Listing(cut.shown, cut.first_id, cut.last_id, cut.has_more))
