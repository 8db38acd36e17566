"""Text that a model wrote for a parameter becomes JSON of the type that the tool declares."""

import json

import msgspec
import pytest

from frontend.openai.tools import FunctionSpec, Tool
from frontend.parsing.values import is_text, parameter_types, to_json


@pytest.mark.parametrize(
    ("raw", "types", "value"),
    [
        ("2", "integer", 2),
        (" +07 ", "integer", 7),
        ("3.0", "integer", 3),
        ("3.5", "integer", "3.5"),
        ("3.5", "number", 3.5),
        ("4.0", "number", 4.0),
        ("1e3", "number", 1000.0),
        ("inf", "number", "inf"),
        ("NaN", "number", "NaN"),
        ("9" * 5000, "integer", "9" * 5000),
        ("True", "boolean", True),
        ("0", "boolean", False),
        ("1", "boolean integer", 1),
        ("yes", "boolean", "yes"),
        ("None", "string null", None),
        ("none of it", "string null", "none of it"),
        ('{"a": [1]}', "object", {"a": [1]}),
        ("[1, 2]", "array", [1, 2]),
        ("[1, 2", "array", "[1, 2"),
        ("[NaN]", "array", "[NaN]"),
        ('{"a": 1}', "array", '{"a": 1}'),
        ("[" * 100_000, "array", "[" * 100_000),
        ('a "b"\n', "integer", 'a "b"\n'),
    ],
)
def test_values_are_typed(raw: str, types: str, value: object) -> None:
    read = json.loads(to_json(raw, frozenset(types.split())))
    assert read == value
    assert type(read) is type(value)


def test_types_are_found_through_references_unions_and_enumerations() -> None:
    schema = {
        "type": "object",
        "properties": {
            "plain": {"type": "string"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "listed": {"enum": ["a", 1, None]},
            "referred": {"$ref": "#/$defs/Place"},
            "endless": {"$ref": "#/$defs/Loop"},
            "several": {"type": ["array", "string"]},
            "unknown": {},
            "odd": True,
        },
        "$defs": {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}},
    }
    tool = Tool(function=FunctionSpec(name="f", parameters=msgspec.Raw(json.dumps(schema).encode())))
    types = parameter_types([tool], "f")
    assert {name: set(each) for name, each in types.items()} == {
        "plain": {"string"},
        "either": {"integer", "null"},
        "listed": {"string", "integer", "null"},
        "referred": {"object"},
        "endless": set(),
        "several": {"array", "string"},
        "unknown": set(),
        "odd": set(),
    }
    assert is_text(types["plain"])
    assert is_text(types["unknown"])
    assert not is_text(types["several"])
    assert parameter_types([tool], "g") == {}


@pytest.mark.parametrize("parameters", [b"", b"[]", b'{"properties": 3}', b"[" * 5000])
def test_schemas_of_another_shape_have_no_types(parameters: bytes) -> None:
    assert parameter_types([Tool(function=FunctionSpec(name="f", parameters=msgspec.Raw(parameters)))], "f") == {}
