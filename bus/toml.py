"""Pure. A configuration tree as TOML text, which `load_config` reads back to an equal tree."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec


def render_toml(config: msgspec.Struct, comments: Mapping[str, str] | None = None) -> str:
    """Return the whole tree, defaults included; `comments` maps dotted keys to a line that goes above the key."""
    lines: list[str] = []
    _section(lines, msgspec.to_builtins(config), (), comments or {})
    return "\n".join(lines).strip() + "\n"


def _section(lines: list[str], tree: Mapping[str, Any], path: tuple[str, ...], comments: Mapping[str, str]) -> None:
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            lines += [f"# {line}" for line in comments.get(".".join((*path, key)), "").splitlines()]
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            name = ".".join(_key(part) for part in (*path, key))
            lines.append("")
            lines += [f"# {line}" for line in comments.get(".".join((*path, key)), "").splitlines()]
            lines.append(f"[{name}]")
            _section(lines, value, (*path, key), comments)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _quote(key)


def _value(value: Any) -> str:
    """JSON writes strings, numbers, booleans and arrays of these as TOML does; in arrays, tables are inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return _quote(value)


def _quote(value: str | float | bool) -> str:
    """Write as JSON does; DEL is the one character that JSON leaves as it is and TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
