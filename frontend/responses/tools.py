"""Pure. The tools of a request of the Responses API, as functions that any model can be shown."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import msgspec

from bus.errors import InvalidRequest
from frontend.openai.body import invalid
from frontend.openai.tools import AnyText, CustomName, CustomSpec, FunctionSpec, GrammarText, InputGrammar, Tool

EXTRAS = ("web_search", "image_generation", "tool_search")
"""Beginnings of kinds that agents offer to every model and that run at OpenAI: a model here does without them.

What a request is about (files to search, servers to ask) is refused instead: an answer without it would be wrong.
"""
T = TypeVar("T")
_BETWEEN = "__"
_MAX_NAMESPACED = 256


class Name(NamedTuple):
    """What a client knows a function as."""

    name: str
    namespace: str = ""
    is_custom: bool = False
    """A custom tool: its input is a text."""


class Offered(NamedTuple):
    """What a model is offered."""

    tools: list[Tool]
    names: dict[str, Name]
    """By the name that the model is shown, where the client knows the function as something else."""
    left_out: tuple[str, ...]
    """What is not served, as it would be named among ignored parameters."""


class _Head(msgspec.Struct, frozen=True):
    type: str


class _Function(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"")
    strict: bool | None = None


class _Grammar(InputGrammar, frozen=True, tag="grammar"):
    """As in chat completions, one level higher."""


class _Custom(msgspec.Struct, frozen=True):
    name: CustomName
    description: str | None = None
    format: AnyText | _Grammar | None = None


class _Namespace(msgspec.Struct, frozen=True):
    name: str
    tools: list[msgspec.Raw]


_head = msgspec.json.Decoder(_Head)
_function = msgspec.json.Decoder(_Function)
_custom = msgspec.json.Decoder(_Custom)
_namespace = msgspec.json.Decoder(_Namespace)


def model_name(name: str, namespace: str | None) -> str:
    """Return what a model is shown for a function of a namespace."""
    return f"{namespace}{_BETWEEN}{name}" if namespace else name


def read_tools(given: Iterable[msgspec.Raw]) -> Offered:
    """Decode tools; raise `InvalidRequest` that names the one that is wrong, or that its client could never run."""
    offered = Offered([], {}, ())
    left_out: list[str] = []
    for number, raw in enumerate(given):
        within = f"tools[{number}]"
        kind = _decode(_head, raw, within).type
        if kind in ("function", "custom"):
            _add_tool(offered, kind, raw, within)
        elif kind == "namespace":
            _add_namespace(offered, raw, within)
        elif kind.startswith(EXTRAS):
            left_out.append(f"{within}.{kind}")
        else:
            raise _not_served(kind, within)
    return offered._replace(left_out=tuple(left_out))


def _add_namespace(offered: Offered, raw: msgspec.Raw, within: str) -> None:
    space = _decode(_namespace, raw, within)
    if len(space.tools) > _MAX_NAMESPACED:
        raise InvalidRequest(f"'{within}.tools' has more than {_MAX_NAMESPACED} tools.", param=f"{within}.tools")
    for number, inner in enumerate(space.tools):
        place = f"{within}.tools[{number}]"
        kind = _decode(_head, inner, place).type
        if kind not in ("function", "custom"):
            raise _not_served(kind, place)
        _add_tool(offered, kind, inner, place, space.name)


def _add_tool(offered: Offered, kind: str, raw: msgspec.Raw, within: str, namespace: str = "") -> None:
    given = _decode(_function, raw, within) if kind == "function" else _decode(_custom, raw, within)
    shown = model_name(given.name, namespace)
    if isinstance(given, _Function):
        spec = FunctionSpec(name=shown, description=given.description, parameters=given.parameters, strict=given.strict)
        offered.tools.append(Tool(function=spec))
    else:
        format = GrammarText(given.format) if isinstance(given.format, _Grammar) else None
        custom = CustomSpec(name=shown, description=given.description, format=format)
        offered.tools.append(Tool(type="custom", custom=custom))
    if namespace or kind == "custom":
        offered.names[shown] = Name(given.name, namespace, is_custom=kind == "custom")


def _decode(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw, within: str) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error, within, decoder.type) from error


def _not_served(kind: str, within: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{within}.type': tools of type {kind[:60]!r} are not served; functions and custom tools, "
        "which the client runs, are.",
        param=f"{within}.type",
    )
