"""Pure. Pages of lists: which part a client asks for, and that part."""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from bus.errors import InvalidRequest

_MAX_FIELDS = 32

T = TypeVar("T")


class Page(NamedTuple):
    """Which part of a list is wanted."""

    limit: int
    after: str = ""
    is_newest_first: bool = True


class Cut(NamedTuple, Generic[T]):
    """That part: ids and what they stand for."""

    entries: Sequence[tuple[str, T]]
    has_more: bool

    @property
    def shown(self) -> list[T]:
        return [each for _, each in self.entries]

    @property
    def first_id(self) -> str | None:
        return self.entries[0][0] if self.entries else None

    @property
    def last_id(self) -> str | None:
        return self.entries[-1][0] if self.entries else None


def read_query(query: bytes) -> Mapping[str, str]:
    """Return the parameters of a query string, the last of each name; raise `InvalidRequest` for too many of them."""
    try:
        given = parse_qsl(query.decode("latin-1"), max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise InvalidRequest(f"The query string has more than {_MAX_FIELDS} parameters.") from error
    return dict(given)


def read_page(query: Mapping[str, str], *, default: int, most: int) -> Page:
    """Read `limit`, `after` and `order`; raise `InvalidRequest` that names the wrong one."""
    limit = query.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(most)) and 1 <= int(limit) <= most):
        raise InvalidRequest(f"Invalid value for 'limit': a number from 1 to {most}.", param="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("Invalid value for 'order': 'asc' or 'desc'.", param="order")
    return Page(int(limit), query.get("after", ""), order == "desc")


def cut(newest_first: Sequence[tuple[str, T]], page: Page) -> Cut[T]:
    """Return a page of a list; raise `InvalidRequest` for an unknown `after`."""
    entries = newest_first if page.is_newest_first else newest_first[::-1]
    start = 0
    if page.after:
        ids = [each for each, _ in entries]
        if page.after not in ids:
            raise InvalidRequest(f"There is no {page.after[:100]!r} to list from.", param="after")
        start = ids.index(page.after) + 1
    end = start + page.limit
    return Cut(entries[start:end], end < len(entries))
