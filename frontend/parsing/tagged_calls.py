"""Pure. Tool calls whose parameters are text between tags, turned into a JSON object as they come."""

import re
from collections.abc import Callable, Mapping

from frontend.parsing.formats import Tagged
from frontend.parsing.json_calls import MAX_NAME
from frontend.parsing.output import Output
from frontend.parsing.tape import Markers, NotACall, Reading, Tape
from frontend.parsing.values import STRING, Types, is_text, quote, to_json

MAX_VALUE = 2**20
"""Characters of a value that is no string; one that is longer is shown as a string."""

_NAME_STOP = re.compile(r"[<>\n]")
_HEAD = re.compile(r"""\s*["']?(?P<name>[^\s"'<>]{1,256})["']?(?:\s+string="(?P<is_text>true|false)")?\s*""")
_UNKNOWN: Types = frozenset({"object", "array", "number", "integer", "boolean", "null"})

TypesOf = Callable[[str], Mapping[str, Types]]
"""Types of the parameters of a function, by its name."""


class TaggedCalls:
    """Reads the calls of one family."""

    def __init__(self, style: Tagged, call_end: str, types_of: TypesOf) -> None:
        self._style = style
        self._call_end = call_end
        self._types_of = types_of
        self._value_end = Markers([style.value_end])

    def read(self, tape: Tape, out: Output) -> Reading[None]:
        """Read one call after its opening, up to its closing tag. It starts once its name and what follows are known.

        Raises `NotACall` before that; later, what is no parameter ends the call.
        """
        style = self._style
        name = (yield from self._head(tape, style.name_end))["name"]
        yield from tape.skip_blanks()
        if not (yield from tape.skip(style.parameter)):
            if not (yield from self._ends(tape)):
                raise NotACall
            tape.mark = None
            out.start_call(name)
            out.arguments("{}")
            return
        at_parameter = tape.at - len(style.parameter)
        out.start_call(name)
        types = self._types_of(name)
        opening = "{"
        while True:
            tape.mark = at_parameter
            try:
                head = yield from self._head(tape, style.parameter_name_end)
                if style.value:
                    yield from tape.skip_blanks()
                    yield from tape.expect(style.value)
            except NotACall:
                out.arguments("{}" if opening == "{" else "}")
                raise
            tape.mark = None
            out.arguments(f"{opening}{quote(head['name'])}: ")
            opening = ", "
            yield from self._value(tape, out, _types(head["is_text"], types.get(head["name"], frozenset())))
            yield from tape.skip_blanks()
            if not (yield from tape.skip(style.parameter)):
                break
            at_parameter = tape.at - len(style.parameter)
        out.arguments("}")

    def _ends(self, tape: Tape) -> Reading[bool]:
        """Say whether the call's closing tag follows, without reading it."""
        found = yield from tape.skip(self._call_end)
        if found:
            tape.at -= len(self._call_end)
        return found

    def _head(self, tape: Tape, end: str) -> Reading[re.Match[str]]:
        """Return name and attributes, up to `end`."""
        text = yield from tape.head(_NAME_STOP, MAX_NAME + 64)
        found = _HEAD.fullmatch(text)
        if found is None:
            raise NotACall
        if end:
            yield from tape.expect(end)
        return found

    def _value(self, tape: Tape, out: Output, types: Types) -> Reading[None]:
        value = _Value(out, types, has_lines=self._style.has_lines)

        def put(text: str) -> None:
            if not tape.is_ended:  # then it is half a closing tag
                value.push(text)

        yield from tape.copy_until(self._value_end, put)
        value.finish()


def _types(is_text_said: str | None, declared: Types) -> Types:
    if is_text_said is None:
        return declared
    return STRING if is_text_said == "true" else declared - STRING or _UNKNOWN


class _Value:
    """One value: a string as it comes, anything else when it is complete."""

    __slots__ = ("_has_lines", "_is_first", "_is_open", "_out", "_parts", "_size", "_tail", "_types")

    def __init__(self, out: Output, types: Types, *, has_lines: bool) -> None:
        self._out = out
        self._types = types
        self._has_lines = has_lines
        self._is_first = has_lines
        self._is_open = False
        self._tail = ""
        """A line break that is part of the value only if something follows."""
        self._parts: list[str] = []
        self._size = 0
        if is_text(types):
            self._open()

    def push(self, text: str) -> None:
        if self._is_first:
            self._is_first = False
            text = text.removeprefix("\n")
        if self._has_lines:
            text = self._tail + text
            self._tail = "\n" if text.endswith("\n") else ""
            text = text.removesuffix("\n")
        if self._is_open:
            self._out.arguments(quote(text)[1:-1])
            return
        self._parts.append(text)
        self._size += len(text)
        if self._size > MAX_VALUE:
            self._open()

    def finish(self) -> None:
        self._out.arguments('"' if self._is_open else to_json("".join(self._parts), self._types))

    def _open(self) -> None:
        """Begin to show it as a string."""
        self._is_open = True
        self._out.arguments('"' + quote("".join(self._parts))[1:-1])
        self._parts.clear()
