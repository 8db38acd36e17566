"""Pure. Pages of the items that a stored response was asked with."""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from bus.errors import InvalidRequest
from frontend.responses.answers import item_id

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


class Page(NamedTuple):
    """What of a list is wanted."""

    limit: int = DEFAULT_LIMIT
    after: str = ""
    is_newest_first: bool = True


class ItemList(msgspec.Struct, frozen=True):
    """A page."""

    data: list[dict[str, msgspec.Raw]]
    first_id: str
    last_id: str
    has_more: bool
    object: str = "list"


class _Head(msgspec.Struct, frozen=True):
    type: str | None = None
    id: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"")


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_head = msgspec.json.Decoder(_Head)
_json = msgspec.json.encode


def read_page(query: bytes) -> Page:
    """Read `limit`, `after` and `order` of a query string; raise `InvalidRequest` that names the wrong one."""
    given = {name: values[-1] for name, values in parse_qs(query.decode("latin-1"), max_num_fields=32).items()}
    limit = given.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidRequest(f"Invalid value for 'limit': a number from 1 to {MAX_LIMIT}.", param="limit")
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("Invalid value for 'order': 'asc' or 'desc'.", param="order")
    return Page(int(limit), given.get("after", ""), order == "desc")


def render_page(response: str, items: Sequence[msgspec.Raw], page: Page) -> bytes:
    """Render a page; items that were sent without an id get one, texts become parts."""
    shown = [_complete(response, raw, number) for number, raw in enumerate(items)]
    ids = [msgspec.json.decode(item["id"], type=str) for item in shown]
    if page.is_newest_first:
        shown.reverse()
        ids.reverse()
    start = 0
    if page.after:
        if page.after not in ids:
            raise InvalidRequest(f"There is no item {page.after[:100]!r} to list from.", param="after")
        start = ids.index(page.after) + 1
    end = start + page.limit
    page_ids = ids[start:end] or [""]
    return _json(ItemList(shown[start:end], page_ids[0], page_ids[-1], end < len(shown)))


def _complete(response: str, raw: msgspec.Raw, number: int) -> dict[str, msgspec.Raw]:
    head = _head.decode(raw)
    kind = head.type or "message"
    fields = {"id": msgspec.Raw(_json(head.id or item_id("in", response, number))), "type": msgspec.Raw(_json(kind))}
    fields |= {name: value for name, value in _fields.decode(raw).items() if name not in fields}
    if kind == "message" and bytes(head.content).startswith(b'"'):
        part_type = b"output_text" if bytes(fields.get("role", b"")) == b'"assistant"' else b"input_text"
        fields["content"] = msgspec.Raw(b'[{"type":"%b","text":%b}]' % (part_type, bytes(head.content)))
    if kind != "item_reference":
        fields.setdefault("status", msgspec.Raw(b'"completed"'))
    return fields
