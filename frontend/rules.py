"""Pure. Rules of llguidance's Lark, one for each kind of thing that an answer may have to be."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from bus.errors import InvalidRequest

MAX_SCHEMA = 128 * 2**10
"""Characters of a schema, expression or grammar that a client may send."""
_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref", "if"}
)
"""Whatever of these a schema has, it says more about its properties than their names."""
_WHITESPACE = {"whitespace_pattern": r"\n? {0,16}"}
"""Between the parts of JSON: a model that likes white space could go on with it for ever."""


def check_length(length: int, param: str) -> None:
    """Raise `InvalidRequest` that names `param` for what is too long to be looked at."""
    if length > MAX_SCHEMA:
        raise InvalidRequest(f"'{param}' has {length} characters; at most {MAX_SCHEMA} are taken.", param=param)


def text(given: str, special: Mapping[str, int]) -> str:
    """Return a rule for this text; the special tokens in it are named by their ids, as text cannot be one."""
    names = sorted((name for name in special if name and name in given), key=len, reverse=True)
    if not names:
        return literal(given) if given else ""
    parts = re.split(f"({'|'.join(map(re.escape, names))})", given)
    return " ".join(f"<[{special[part]}]>" if part in special else literal(part) for part in parts if part)


def literal(given: str) -> str:
    """Return a rule for this text, none of it a special token."""
    return json.dumps(given, ensure_ascii=False)


def choice(texts: list[str], param: str) -> str:
    """Return a rule for one of some texts: a terminal, as a rule can have 2,000 alternatives and no more."""
    check_length(sum(map(len, texts)), param)
    return f"CHOICE\nCHOICE: {' | '.join(map(literal, texts))}"


def regex(expression: str, param: str) -> str:
    """Return a rule for what a regular expression matches."""
    check_length(len(expression), param)
    return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", expression).replace("\n", "\\n") + "/"


def any_json(schema: bytes, param: str) -> str:
    """Return a rule for JSON of a schema; what is wrong with the schema itself shows when the grammar is checked."""
    check_length(len(schema), param)
    try:
        shape = msgspec.json.decode(schema)
        if isinstance(shape, dict):
            _close(shape)
            shape.setdefault("x-guidance", _WHITESPACE)
        return f"%json {json.dumps(shape, ensure_ascii=False)}"
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise InvalidRequest(f"Invalid value for '{param}': {error}.", param=param) from error


def lark(grammar: str, param: str) -> str:
    """Return a client's whole grammar in Lark as a rule."""
    check_length(len(grammar), param)
    return _nested(grammar)


def lark_or_gbnf(grammar: str, param: str) -> str:
    """Return a client's whole grammar, GBNF or Lark, as a rule."""
    from llguidance.gbnf_to_lark import any_to_lark

    check_length(len(grammar), param)
    try:  # blank lines cost it their square
        return _nested(any_to_lark("\n".join(line for line in grammar.split("\n") if line.strip())))
    except Exception as error:  # a parser of its own, which raises whatever it meets
        raise InvalidRequest(f"Invalid value for '{param}': {error}"[:500], param=param) from error


def _nested(grammar: str) -> str:
    return f"%lark {{\n{grammar.replace('%llguidance {}', '')}\n}}"


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
