"""Pure. Which texts a type takes at a place where only some may stand."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


def supported_values(kind: Any, path: str) -> list[str]:
    """Return the texts that may stand at a path of a type, such as `messages[0].role`; none where any may."""
    found: list[inspect.Type] = [_info(kind)]
    for step in _STEP.findall(path):
        found = [inner for each in found for inner in _inside(each, step)]
    literals = [one for each in found for one in _flat(each) if isinstance(one, inspect.LiteralType)]
    return list(dict.fromkeys(value for one in literals for value in one.values if isinstance(value, str)))


@lru_cache(maxsize=64)
def _info(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _flat(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Yield the members of unions within unions, and what is no union itself."""
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _flat(each)
    else:
        yield kind


def _inside(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    """Yield what may stand at one step further: a field, or an element."""
    for each in _flat(kind):
        if isinstance(each, inspect.StructType):
            if each.tag_field == step:
                yield inspect.LiteralType((each.tag,))
            yield from (field.type for field in each.fields if field.encode_name == step)
        elif isinstance(each, inspect.ListType):
            yield each.item_type
        elif isinstance(each, inspect.DictType):
            yield each.value_type
