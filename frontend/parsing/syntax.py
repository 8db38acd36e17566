"""Pure. What a tool call looks like in a family's own writing: what a grammar needs to force one."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from bus.errors import InvalidRequest
from frontend.openai.tools import InputGrammar, Tool
from frontend.parsing.formats import AS_TEXT, Format, Named

_ANY_OBJECT = b'{"type": "object"}'


class CallSyntax(NamedTuple):
    """One tool: a call is `begin`, a JSON value of `schema` or, where there is one, a text of the grammar, `end`."""

    begin: str
    schema: bytes
    end: str
    grammar: InputGrammar | None = None


class ToolGrammar(NamedTuple):
    """The text that an answer must be: calls, one after the other."""

    calls: tuple[CallSyntax, ...]
    separator: str
    """Between two calls."""
    may_repeat: bool


def tool_grammar(format: Format, tools: Sequence[Tool], *, is_parallel: bool) -> ToolGrammar:
    """Describe calls of these tools: all that may be called, or the one that was named.

    Families that write no JSON get calls as JSON objects within their markers, which their parser reads as well; a text
    in Lark stands between tags.
    Raises `InvalidRequest` for a format whose calls nobody reads.
    """
    if not format.has_calls:
        raise InvalidRequest(
            "Tool calls of this model are not read (frontend.parser is 'none'), so none can be required.",
            param="tool_choice",
        )
    # Where calls of both kinds may come, they are marked: bare objects are calls at the beginning of an answer only.
    is_bare = format.is_bare and not any(_is_lark(tool) for tool in tools)
    return ToolGrammar(
        tuple(_call(format, tool, is_bare=is_bare) for tool in tools),
        separator="; " if is_bare else "" if format.is_harmony or format.style or format.is_bare else "\n",
        may_repeat=is_parallel and not format.is_harmony,
    )


def _is_lark(tool: Tool) -> bool:
    return tool.grammar is not None and tool.grammar.syntax == "lark"


def _call(format: Format, tool: Tool, *, is_bare: bool) -> CallSyntax:
    name = tool.function.name
    schema = bytes(tool.function.parameters) or _ANY_OBJECT
    if _is_lark(tool):
        if format.is_harmony:
            begin = f"<|channel|>commentary to=functions.{name} <|constrain|>text<|message|>"
            return CallSyntax(begin, b"", "", tool.grammar)
        begin = f"{format.begin}\n{AS_TEXT.call}{name}>\n<parameter=input>\n"
        return CallSyntax(begin, b"", f"\n</parameter>\n</function>\n{format.end}", tool.grammar)
    if format.is_harmony:
        begin = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        return CallSyntax(begin, schema, "")
    if format.name == "mistral":
        return CallSyntax(f"[TOOL_CALLS]{name}[ARGS]", schema, "")
    if isinstance(format.style, Named):
        head = f"functions.{name}:0<|tool_call_argument_begin|>" if format.ids == "kimi" else f"{name}<｜tool▁sep｜>"
        return CallSyntax(f"{format.begin}{format.call}{head}", schema, f"{format.call_ends[-1]}{format.end}")
    if format.is_bare:
        mark = "" if is_bare else format.begin
        return CallSyntax(f'{mark}{{"name": {json.dumps(name)}, "parameters": ', schema, "}")
    return CallSyntax(f'{format.begin}\n{{"name": {json.dumps(name)}, "arguments": ', schema, f"}}\n{format.end}")
