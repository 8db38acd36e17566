"""Pure. Tool calls as JSON objects, and JSON arguments copied as they come."""

import json
import re

from frontend.parsing.output import Output
from frontend.parsing.tape import NotACall, Put, Reading, Tape

MAX_HELD = 64 * 2**10
"""Characters that are held where a call's name comes late; a longer value is text."""
MAX_NAME = 256

_ARGUMENTS = ("arguments", "parameters")
_KEYS = frozenset({"name", "id", "type", "function", *_ARGUMENTS})
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\\x00-\x1f]')
_SCALAR_END = re.compile(r"[\s,}\]]")


def copy_json(tape: Tape, put: Put, limit: int | None = None) -> Reading[None]:
    """Hand over the object or array at the tape's position as it comes, up to its end.

    Brackets are counted, nothing is checked: what a model writes wrong is handed over wrong, but for bare control
    characters in strings, which are escaped. With a `limit`, raises `NotACall` for what is longer.
    """
    depth = 0
    left = limit
    while True:
        found = _OUTSIDE.search(tape.text, tape.at)
        end = found.end() if found else len(tape.text)
        left = _spend(tape, end, left)
        if end > tape.at:
            put(tape.text[tape.at : end])
            tape.at = end
        if found is None:
            yield from tape.more()
        elif found[0] == '"':
            left = yield from _copy_string(tape, put, left)
        elif found[0] in "{[":
            depth += 1
        else:
            depth -= 1
            if depth <= 0:
                return


def _copy_string(tape: Tape, put: Put, left: int | None) -> Reading[int | None]:
    """Hand over the rest of a string and its closing quote; return what is left of the limit."""
    while True:
        found = _INSIDE.search(tape.text, tape.at)
        end = found.start() if found else len(tape.text)
        left = _spend(tape, end, left)
        if end > tape.at:
            put(tape.text[tape.at : end])
            tape.at = end
        if found is None:
            yield from tape.more()
            continue
        if found[0] == "\\":
            while tape.at + 1 == len(tape.text):
                yield from tape.more()
            left = _spend(tape, tape.at + 2, left)
            put(tape.text[tape.at : tape.at + 2])
            tape.at += 2
            continue
        left = _spend(tape, end + 1, left)
        tape.at += 1
        if found[0] == '"':
            put('"')
            return left
        put(f"\\u{ord(found[0]):04x}")


def _spend(tape: Tape, end: int, left: int | None) -> int | None:
    """Count what is read up to `end`; beyond the limit, stop exactly there."""
    if left is None:
        return None
    if end - tape.at > left:
        tape.at += left
        raise NotACall
    return left - (end - tape.at)


def read_string(tape: Tape, limit: int) -> Reading[str]:
    """Return the JSON string at the tape's position; raise `NotACall`, with nothing read, where there is none."""
    done = 1
    if (yield from tape.peek()) != '"':
        raise NotACall
    while True:
        found = _INSIDE.search(tape.text, tape.at + done)
        done = (found.start() if found else len(tape.text)) - tape.at
        if done > limit:
            raise NotACall
        if found is None:
            yield from tape.more()
            continue
        if found[0] == '"':
            break
        done += 1
        if found[0] == "\\":
            while tape.at + done >= len(tape.text):
                yield from tape.more()
            done += 1
    try:
        value: str = json.loads(tape.text[tape.at : tape.at + done + 1], strict=False)
        value.encode()  # an escaped lone surrogate is no text that an answer could carry
    except ValueError as error:
        raise NotACall from error
    tape.at += done + 1
    return value


def read_call_object(tape: Tape, out: Output, names: frozenset[str] | None = None) -> Reading[None]:
    """Read `{"name": ..., "arguments": {...}}`, its keys in any order, `parameters` and `function` as models have them.

    The call starts as soon as its name is known and its arguments begin. Raises `NotACall` for another object, and,
    with `names`, for a function that is none of them.
    """
    call = _Call(tape, out, names)
    yield from call.read()


class _Call:
    __slots__ = ("_held", "_id", "_name", "_names", "_out", "_tape")

    def __init__(self, tape: Tape, out: Output, names: frozenset[str] | None) -> None:
        self._tape = tape
        self._out = out
        self._names = names
        self._name = ""
        self._id = ""
        self._held = ""
        """Arguments that came before the name."""

    def read(self) -> Reading[None]:
        yield from self._members(may_nest=True)
        if self._tape.mark is None:
            return
        if not self._name:
            raise NotACall
        self._start()
        self._out.arguments(self._held or "{}")

    def _members(self, *, may_nest: bool) -> Reading[None]:
        tape = self._tape
        yield from tape.expect("{")
        yield from tape.skip_blanks()
        while not (yield from tape.skip("}")):
            place = tape.held
            key = yield from read_string(tape, MAX_NAME)
            if self._names is not None and key not in _KEYS and tape.mark is not None:
                tape.back(place)
                raise NotACall
            yield from tape.skip_blanks()
            yield from tape.expect(":")
            yield from tape.skip_blanks()
            if key == "function" and may_nest and (yield from tape.peek()) == "{":
                yield from self._members(may_nest=False)
            else:
                yield from self._member(key)
            yield from tape.skip_blanks()
            if not (yield from tape.skip(",")):
                yield from tape.expect("}")
                return
            yield from tape.skip_blanks()

    def _member(self, key: str) -> Reading[None]:
        tape = self._tape
        if key in ("name", "function") and not self._name:
            place = tape.held
            self._name = yield from read_string(tape, MAX_NAME)
            if not self._name or (self._names is not None and self._name not in self._names):
                tape.back(place)
                raise NotACall
        elif key == "id" and (yield from tape.peek()) == '"':
            self._id = yield from read_string(tape, MAX_NAME)
        elif key in _ARGUMENTS and tape.mark is not None:
            yield from self._arguments()
        else:
            yield from _skip_value(tape)

    def _arguments(self) -> Reading[None]:
        tape = self._tape
        first = yield from tape.peek()
        if first == "{" and self._name:
            self._start()
            yield from copy_json(tape, self._out.arguments)
        elif first == "{":
            parts: list[str] = []
            yield from copy_json(tape, parts.append, MAX_HELD)
            self._held = "".join(parts)
        elif first == '"':
            place = tape.held
            self._held = yield from read_string(tape, MAX_HELD)
            if not is_json_object(self._held):
                tape.back(place)
                raise NotACall
        else:
            yield from tape.expect("null")

    def _start(self) -> None:
        self._tape.mark = None
        self._out.start_call(self._name, self._id)


def _skip_value(tape: Tape) -> Reading[None]:
    first = yield from tape.peek()
    if first and first in "{[":
        yield from copy_json(tape, len, MAX_HELD)
    elif first == '"':
        yield from read_string(tape, MAX_HELD)
    else:
        yield from tape.head(_SCALAR_END, MAX_NAME)


def is_json_object(text: str) -> bool:
    """Say whether this is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
