"""Pure. Pages of the items that a stored response was asked with."""

from collections.abc import Sequence

import msgspec

from frontend.pages import Page, cut
from frontend.responses.answers import item_id

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


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


def render_page(response: str, items: Sequence[msgspec.Raw], page: Page) -> bytes:
    """Render a page; items that were sent without an id, or with that of another, get one, texts become parts."""
    taken: set[str] = set()
    shown = [_complete(response, raw, number, taken) for number, raw in enumerate(items)]
    found = cut([(msgspec.json.decode(item["id"], type=str), item) for item in reversed(shown)], page)
    return _json(ItemList(found.shown, found.first_id or "", found.last_id or "", found.has_more))


def _complete(response: str, raw: msgspec.Raw, number: int, taken: set[str]) -> dict[str, msgspec.Raw]:
    head = _head.decode(raw)
    kind = head.type or "message"
    # Pages go on after an id: with one that stands twice they would never end.
    name = head.id if head.id and head.id not in taken else item_id("in", response, number)
    taken.add(name)
    fields = {"id": msgspec.Raw(_json(name)), "type": msgspec.Raw(_json(kind))}
    fields |= {name: value for name, value in _fields.decode(raw).items() if name not in fields}
    if kind == "message" and bytes(head.content).startswith(b'"'):
        is_said = bytes(fields.get("role", b"")) == b'"assistant"'
        part = b'"output_text","annotations":[]' if is_said else b'"input_text"'
        fields["content"] = msgspec.Raw(b'[{"type":%b,"text":%b}]' % (part, bytes(head.content)))
    if kind != "item_reference":
        fields.setdefault("status", msgspec.Raw(b'"completed"'))
    return fields
