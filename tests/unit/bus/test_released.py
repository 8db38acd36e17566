"""Messages as the last release wrote them: all that they say is read now, and said again in the same places."""

import importlib
import json
from pathlib import Path

import msgspec
import pytest

from bus.codec import codec, encode

RELEASED: list[tuple[str, str]] = json.loads((Path(__file__).parent / "released.json").read_text())
"""Type and bytes, from commit 567950c, which tests/e2e/test_versions.py runs."""


@pytest.mark.parametrize(("name", "data"), RELEASED)
def test_what_the_release_said_is_understood(name: str, data: str) -> None:
    module, _, kind = name.rpartition(".")
    message = codec(getattr(importlib.import_module(module), kind)).decode(bytes.fromhex(data))
    assert contains(msgspec.msgpack.decode(encode(message)), msgspec.msgpack.decode(bytes.fromhex(data)))


@pytest.mark.parametrize(
    ("new", "old", "is_contained"),
    [
        ({"a": 1, "b": [1, 2, 3]}, {"b": [1, 2]}, True),
        ({"a": 1}, {"b": 1}, False),
        ([1, {"a": 2}], [1, {"a": 3}], False),
        ([1], [1, 2], False),
    ],
)
def test_containment(new: object, old: object, is_contained: bool) -> None:
    assert contains(new, old) == is_contained


def contains(new: object, old: object) -> bool:
    """Say whether `new` is `old`, maps with further keys and arrays with further elements at their end allowed."""
    if isinstance(new, dict) and isinstance(old, dict):
        return all(key in new and contains(new[key], value) for key, value in old.items())
    if isinstance(new, list) and isinstance(old, list):
        return len(new) >= len(old) and all(map(contains, new, old))
    return new == old
