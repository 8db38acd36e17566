"""Pure. The items of a conversation as clients send them and as answers hold them."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from bus.errors import InvalidRequest
from frontend.openai.body import invalid


class TextPart(msgspec.Struct, frozen=True):
    """A part of an item's content; only text is served. `refusal` stands in place of `text` in refusals."""

    type: str
    text: str = ""
    refusal: str = ""


class MessageItem(msgspec.Struct, frozen=True):
    """A turn of somebody; clients may leave out its type."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]


class FunctionCallItem(msgspec.Struct, frozen=True):
    """A call that the model made; `arguments` is JSON."""

    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class CustomCallItem(msgspec.Struct, frozen=True):
    """A call of a custom tool; `input` is any text."""

    call_id: str
    name: str
    input: str
    namespace: str | None = None


class FunctionOutputItem(msgspec.Struct, frozen=True):
    """What a function or a custom tool gave back."""

    call_id: str
    output: str | list[TextPart]


class ReasoningItem(msgspec.Struct, frozen=True):
    """What the model thought: its own words, or a summary of them."""

    content: list[TextPart] | None = None
    summary: list[TextPart] | None = None


class ItemReference(msgspec.Struct, frozen=True):
    """An item that is stored here."""

    id: str


Item = MessageItem | FunctionCallItem | CustomCallItem | FunctionOutputItem | ReasoningItem

_TYPES: dict[str, type[Item | ItemReference]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionOutputItem,
    "custom_tool_call": CustomCallItem,
    "custom_tool_call_output": FunctionOutputItem,
    "reasoning": ReasoningItem,
    "item_reference": ItemReference,
}
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"})


class _Head(msgspec.Struct, frozen=True):
    type: str | None = None
    role: str | None = None
    id: str | None = None


_head = msgspec.json.Decoder(_Head)
_decoders = {name: msgspec.json.Decoder(kind) for name, kind in _TYPES.items()}


def decode_item(raw: msgspec.Raw, number: int) -> Item | ItemReference:
    """Decode input item `number`; raise `InvalidRequest` that names it, also for what is not served."""
    within = f"input[{number}]"
    kind: type[msgspec.Struct] = _Head
    try:
        head = _head.decode(raw)
        name = head.type or ("message" if head.role is not None else "item_reference")
        if name not in _decoders:
            raise InvalidRequest(
                f"Invalid value for '{within}.type': items of type {name[:60]!r} are not served; known types: "
                f"{', '.join(_TYPES)}.",
                param=f"{within}.type",
            )
        kind = _TYPES[name]
        return _decoders[name].decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error, within, kind) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Invalid value for '{within}': no JSON object that can be read.", param=within) from error


def text_of(content: str | Sequence[TextPart], param: str = "input") -> str:
    """Return content as one text; raise `InvalidRequest` for images and files."""
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in _TEXT_PARTS:
            raise InvalidRequest(
                f"Invalid value for '{param}': content of type {part.type[:40]!r} is not served; only text is.",
                param=param,
            )
    return "\n".join(part.text or part.refusal for part in content)
