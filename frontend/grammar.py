"""Pure. What an answer must look like, as one grammar: JSON, regular expressions, choices, grammars, tool calls.

Grammars are llguidance's, and it is asked here whether one is sound: a client hears of a bad schema before any engine
does. It is imported when the first request needs it.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from bus.errors import InvalidRequest
from bus.messages.inference import MAX_GRAMMAR
from frontend.openai.body import ChatBody, CompletionBody, ResponseFormat, StructuredOutputs, Tool
from frontend.parsing import Format, ToolGrammar, tool_grammar
from frontend.vocabulary import Vocabulary

_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref", "if"}
)
"""Whatever of these a schema has, it says more about its properties than their names."""
MAX_SCHEMA = 128 * 2**10
"""Characters of a schema, expression or grammar that a client may send."""
_WHITESPACE = {"whitespace_pattern": r"\n? {0,16}"}
"""Between the parts of JSON: a model that likes white space could go on with it for ever."""


def grammar_for(body: ChatBody | CompletionBody, format: Format, vocabulary: Vocabulary, prompt_tail: str) -> str:
    """Return the grammar that a body asks for, empty for none.

    Raises `InvalidRequest` that names the field. `prompt_tail` tells whether the answer begins inside of a thought.
    """
    if not has_grammar(body):
        return ""
    param, content = _content(body)
    tools = _forced_tools(body)
    if not content and not tools:
        return ""
    rules = [content] if content else []
    special = vocabulary.markers
    calls = tool_grammar(format, tools, is_parallel=_is_parallel(body)) if tools else None
    if calls is not None:
        rules.append(_calls_rule(calls, special))
        param = param or "tools"
    lark = f"start: {' | '.join(f'answer{number}' for number in range(len(rules)))}\n"
    reasoning = format.reasoning
    if reasoning is not None and prompt_tail.rstrip().endswith(reasoning.begin):
        lark = _after_thought(lark, reasoning.end, special)
    lark += "".join(f"answer{number}: {rule}\n" for number, rule in enumerate(rules))
    return check_grammar(lark, param)


@lru_cache(maxsize=256)
def check_grammar(lark: str, param: str) -> str:
    """Return a grammar of llguidance's Lark as it goes over the bus; raise `InvalidRequest` for an unsound one."""
    from llguidance import LLMatcher

    grammar = json.dumps({"grammars": [{"lark_grammar": lark}]}, ensure_ascii=False)
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidRequest(
            f"'{param}' makes a grammar of {len(grammar)} characters; {MAX_GRAMMAR} can be had.", param=param
        )
    reason = LLMatcher.validate_grammar(grammar)
    if reason:
        shown = re.sub(r"^at \d+\(\d+\): ", "", reason.split("\n")[0])
        raise InvalidRequest(f"Invalid value for '{param}': {shown[:500]}.", param=param)
    return grammar


def has_grammar(body: ChatBody | CompletionBody) -> bool:
    """Say whether anything about the answer's form is asked; it seldom is, and that is told quickly."""
    return (
        body.structured_outputs is not None
        or body.guided_regex is not None
        or body.guided_choice is not None
        or body.guided_grammar is not None
        or bool(bytes(body.guided_json))
        or (isinstance(body, ChatBody) and (body.response_format is not None or body.choice not in ("none", "auto")))
    )


def _content(body: ChatBody | CompletionBody) -> tuple[str, str]:
    """Return the parameter that constrains the text, and a rule for it; empty where there is none."""
    found: dict[str, str] = {}
    if isinstance(body, ChatBody) and body.response_format is not None:
        found |= _of_format(body.response_format)
    if body.structured_outputs is not None:
        found |= _of_structured(body.structured_outputs, "structured_outputs.", "")
    guided = StructuredOutputs(
        json=body.guided_json, regex=body.guided_regex, choice=body.guided_choice, grammar=body.guided_grammar
    )
    found |= _of_structured(guided, "", "guided_")
    if len(found) > 1:
        raise InvalidRequest(f"{' and '.join(map(repr, found))} exclude each other.", param=next(iter(found)))
    return next(iter(found.items()), ("", ""))


def _of_format(wanted: ResponseFormat) -> dict[str, str]:
    if wanted.type == "json_object":
        return {"response_format": _json_rule(b'{"type": "object"}', "response_format")}
    if wanted.type == "text":
        return {}
    if wanted.json_schema is None or not bytes(wanted.json_schema.schema):
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema.schema'.", param="response_format.json_schema"
        )
    return {"response_format": _json_rule(bytes(wanted.json_schema.schema), "response_format.json_schema.schema")}


def _of_structured(wanted: StructuredOutputs, path: str, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("json", "regex", "choice", "grammar"):
        value = getattr(wanted, name)
        param = f"{path}{prefix}{name}"
        if isinstance(value, msgspec.Raw):
            if bytes(value) not in (b"", b"null"):
                found[param] = _json_rule(_unquoted(bytes(value)), param)
        elif isinstance(value, list):
            _check_length(sum(map(len, value)), param)
            found[param] = _choice(value)
        elif value is not None:
            _check_length(len(value), param)
            found[param] = _regex(value) if name == "regex" else _nested(value, param)
    if wanted.json_object:
        found[f"{path}json_object"] = _json_rule(b'{"type": "object"}', path)
    return found


def _forced_tools(body: ChatBody | CompletionBody) -> list[Tool]:
    """Return the tools of which one must be called; raise `InvalidRequest` for a choice that names none of them."""
    if not isinstance(body, ChatBody) or body.choice in ("none", "auto"):
        return []
    tools = list(body.offered)
    if not tools:
        reason = "allows none of the 'tools'" if body.tools else "is only allowed when 'tools' are specified"
        raise InvalidRequest(f"'tool_choice' {reason}.", param="tool_choice")
    if isinstance(body.choice, str):
        return tools
    name = body.choice.function.name
    named = [tool for tool in tools if tool.function.name == name]
    if not named:
        raise InvalidRequest(f"Tool choice {name[:100]!r} is none of the 'tools'.", param="tool_choice")
    return named[:1]


def _is_parallel(body: ChatBody | CompletionBody) -> bool:
    """Say whether several calls may come; a named function is called once, as OpenAI does it."""
    return isinstance(body, ChatBody) and body.choice == "required" and body.parallel_tool_calls is not False


def _calls_rule(calls: ToolGrammar, special: Mapping[str, int]) -> str:
    each = " | ".join(
        f"{_text(call.begin, special)} {_json_rule(call.schema, 'tools')} {_text(call.end, special)}".strip()
        for call in calls.calls
    )
    if not calls.may_repeat:
        return each
    separator = _text(calls.separator, special)
    return f"({each}) ({separator} ({each})){{0,15}}" if separator else f"({each}){{1,16}}"


def _after_thought(lark: str, end: str, special: Mapping[str, int]) -> str:
    """Let the model think first: the grammar takes over after the words that end the thought."""
    body = lark.removeprefix("start: ")
    if end in special:
        return f"start: thought <[{special[end]}]> blank rest\nthought: /(?s:.*)/\nblank: /\\s{{0,4}}/\nrest: {body}"
    return f"start: thought blank rest\nthought[suffix={json.dumps(end)}]: /(?s:.*)/\nblank: /\\s{{0,4}}/\nrest: {body}"


def _text(text: str, special: Mapping[str, int]) -> str:
    """Return a literal; the special tokens in it are named by their ids, as text cannot be one."""
    names = sorted((name for name in special if name and name in text), key=len, reverse=True)
    if not names:
        return _literal(text) if text else ""
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
    return " ".join(f"<[{special[part]}]>" if part in special else _literal(part) for part in parts if part)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _choice(texts: list[str]) -> str:
    """Return a rule for one of some texts: a terminal, as a rule can have 2,000 alternatives and no more."""
    return f"CHOICE\nCHOICE: {' | '.join(map(_literal, texts))}"


def _regex(expression: str) -> str:
    return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", expression).replace("\n", "\\n") + "/"


def _json_rule(schema: bytes, param: str) -> str:
    """Return a rule for JSON of a schema; what is wrong with the schema itself shows in `check_grammar`."""
    _check_length(len(schema), param)
    try:
        shape = msgspec.json.decode(schema)
        if isinstance(shape, dict):
            _close(shape)
            shape.setdefault("x-guidance", _WHITESPACE)
        return f"%json {json.dumps(shape, ensure_ascii=False)}"
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise InvalidRequest(f"Invalid value for '{param}': {error}.", param=param) from error


def _close(schema: Any) -> None:
    """Let objects that name their properties have no others, where the schema leaves that open.

    OpenAI's strict schemas say so themselves; a model that is forced would go on inventing properties.
    """
    if not isinstance(schema, dict):
        return
    named = schema.get("properties")
    if isinstance(named, dict):
        if not schema.keys() & _OPEN:
            schema["additionalProperties"] = False
        for each in named.values():
            _close(each)
    for key in ("$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            for each in schema[key].values():
                _close(each)
    _close(schema.get("items"))
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(schema.get(key), list):
            for each in schema[key]:
                _close(each)


def _unquoted(data: bytes) -> bytes:
    """Return a schema that came as JSON in a string."""
    if not data.startswith(b'"'):
        return data
    try:
        return msgspec.json.decode(data, type=str).encode()
    except (msgspec.MsgspecError, UnicodeError):
        return data


def _nested(grammar: str, param: str) -> str:
    """Return a client's whole grammar, GBNF or Lark, as a rule."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark = any_to_lark(
            "\n".join(line for line in grammar.split("\n") if line.strip())
        )  # blank ones cost it their square
    except Exception as error:  # a parser of its own, which raises whatever it meets
        raise InvalidRequest(f"Invalid value for '{param}': {error}"[:500], param=param) from error
    return f"%lark {{\n{lark.replace('%llguidance {}', '')}\n}}"


def _check_length(length: int, param: str) -> None:
    if length > MAX_SCHEMA:
        raise InvalidRequest(f"'{param}' has {length} characters; at most {MAX_SCHEMA} are taken.", param=param)
