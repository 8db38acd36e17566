"""Pure. Parameters that a model writes as text, typed by the tool's schema."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from frontend.openai.tools import Tool

Types = frozenset[str]
STRING: Types = frozenset({"string"})

_MAX_REFERENCES = 8
_INTEGER = re.compile(r"[+-]?\d{1,300}(\.0+)?")
_NAME_OF = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_WORDS = {"true": "true", "1": "true", "false": "false", "0": "false"}
_decoder = msgspec.json.Decoder()

quote = json.encoder.encode_basestring
"""A JSON string of any Python string, lone surrogates left as they are."""


def parameter_types(tools: Sequence[Tool], name: str) -> dict[str, Types]:
    """Return the JSON types that each parameter of that function may have; of what is not declared, nothing."""
    for tool in tools:
        if tool.function.name == name:
            try:
                schema = _decoder.decode(tool.function.parameters or b"{}")
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                return {}
            properties = schema.get("properties") if isinstance(schema, dict) else None
            if not isinstance(properties, dict):
                return {}
            return {key: _types(each, schema, _MAX_REFERENCES) for key, each in properties.items()}
    return {}


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Types:
    if not isinstance(schema, dict) or not depth:
        return frozenset()
    found: set[str] = set()
    declared = schema.get("type")
    if isinstance(declared, str):
        found.add(declared)
    elif isinstance(declared, list):
        found.update(each for each in declared if isinstance(each, str))
    elif isinstance(schema.get("enum"), list):
        found.update(_NAME_OF.get(type(each), "null") for each in schema["enum"])
    if isinstance(reference := schema.get("$ref"), str):
        found |= _types(_resolve(reference, root), root, depth - 1)
    for union in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(union)
        if isinstance(branches, list):
            for branch in branches[:_MAX_REFERENCES]:
                found |= _types(branch, root, depth - 1)
    return frozenset(found)


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """Return what a reference within the schema (`#/$defs/Name`) names, or nothing."""
    at: Any = root
    for part in reference.removeprefix("#/").split("/")[:_MAX_REFERENCES]:
        at = at.get(part) if isinstance(at, dict) else None
    return at


def is_text(types: Types) -> bool:
    """Say whether a value of these types is a string whatever it looks like: it can be shown as it comes."""
    return not types or types == STRING


def to_json(raw: str, types: Types) -> str:
    """Return the value that a model wrote as text, as JSON of one of the types; a string where it is none of them."""
    value = raw.strip()
    word = value.lower()
    if "null" in types and word in ("null", "none"):
        return "null"
    if "boolean" in types and word in _WORDS and not (word.isdigit() and types & {"integer", "number"}):
        return _WORDS[word]
    if types & {"integer", "number"} and _INTEGER.fullmatch(value):
        whole, _, fraction = value.partition(".")
        return str(int(whole)) + (f".{fraction}" if fraction and "integer" not in types else "")
    if "number" in types and (number := _number(value)) is not None:
        return number
    if ("object" in types and value[:1] == "{") or ("array" in types and value[:1] == "["):
        try:
            json.loads(value, parse_constant=_refuse)
            return value
        except (ValueError, RecursionError):
            pass
    return quote(raw)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _number(value: str) -> str | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return repr(number) if math.isfinite(number) else None
