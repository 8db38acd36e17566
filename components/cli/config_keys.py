"""I/O. The explanation of each configuration key: the string below it in `bus/config.py`."""

import ast
import inspect

import msgspec

import bus.config
from bus.config import Config


def explain_keys() -> dict[str, str]:
    """Return what is written about each dotted key and section, in the order of the tree; empty where nothing is."""
    documented = _field_docstrings(inspect.getsource(bus.config))
    keys: dict[str, str] = {}
    _collect(Config, "", documented, keys)
    return keys


def _collect(
    section: type[msgspec.Struct], prefix: str, documented: dict[tuple[str, str], str], keys: dict[str, str]
) -> None:
    for field in msgspec.structs.fields(section):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            keys[name] = (inspect.getdoc(field.type) or "").splitlines()[0]
            _collect(field.type, f"{name}.", documented, keys)
        else:
            keys[name] = documented.get((section.__name__, field.name), "")


def _field_docstrings(source: str) -> dict[tuple[str, str], str]:
    """Read the string literals that follow annotated fields, which Python itself does not keep."""
    found: dict[tuple[str, str], str] = {}
    for section in ast.parse(source).body:
        if not isinstance(section, ast.ClassDef):
            continue
        for field, after in zip(section.body, section.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                text = after.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[section.name, field.target.id] = inspect.cleandoc(text.value)
    return found
