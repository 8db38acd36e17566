"""Pure. Calls of custom tools: what they are called with is a text, which models write as a function's one argument."""

import re
from collections.abc import Sequence

from frontend.deltas import CallArguments, CallStart, Delta, Parser

_OPENING = '{"input":"'
_BLANK_BEFORE = frozenset({0, 1, 8, 9})
"""Places in `_OPENING` before which there may be white space."""
_MAX_OPENING = 256
"""Characters of an opening with its white space; a longer one is the input itself."""
_WHOLE = re.compile(
    r"""(?: [^"\\]+ | \\[^u]
    | \\u(?:(?![dD][89abAB])[0-9a-fA-F]{4} | [dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})
    | \\u[dD][89abAB][0-9a-fA-F]{2}(?= [^\\] | \\[^u])
    | \\u(?=[0-9a-fA-F]{0,3}[^0-9a-fA-F])
    )*+""",
    re.VERBOSE,
)
"""As much of the inside of a JSON string as can be read whatever follows: half an escape, or half a pair, cannot."""
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)", re.DOTALL)
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class CustomInputs:
    """A parser whose calls of custom tools carry their input as it is, as soon as it is there.

    What a model wrote instead of the one argument is the input itself.
    """

    __slots__ = ("_input", "_names", "_parser")

    def __init__(self, parser: Parser, names: frozenset[str]) -> None:
        """`names` are those of the custom tools."""
        self._parser = parser
        self._names = names
        self._input: _Input | None = None
        """Of the call that is being written, if that is one of a custom tool."""

    def push(self, text: str) -> list[Delta]:
        """Take the next characters."""
        return self._read(self._parser.push(text))

    def finish(self) -> list[Delta]:
        """Take the end."""
        return self._read(self._parser.finish())

    def _read(self, deltas: Sequence[Delta]) -> list[Delta]:
        shown: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, CallStart):
                self._input = _Input() if delta.name in self._names else None
            elif isinstance(delta, CallArguments) and self._input is not None:
                text = self._input.push(delta.fragment)
                if text:
                    shown.append(CallArguments(delta.call, text))
                continue
            shown.append(delta)
        return shown


class _Input:
    """The input of one call."""

    __slots__ = ("_held", "_is_over", "_is_raw", "_place")

    def __init__(self) -> None:
        self._place = 0
        """How much of `_OPENING` was read."""
        self._held = ""
        self._is_raw = False
        self._is_over = False

    def push(self, fragment: str) -> str:
        """Take the next characters of the arguments; return those of the input."""
        if self._is_raw or self._is_over:
            return fragment if self._is_raw else ""
        text = self._held + fragment
        if self._place < len(_OPENING):
            start = len(self._held) + self._open(fragment)
            self._is_raw = self._is_raw or start > _MAX_OPENING
            if self._is_raw:
                return text
            if self._place < len(_OPENING):
                self._held = text
                return ""
            text = text[start:]
        found = _WHOLE.match(text)
        end = found.end() if found else 0
        self._is_over = text[end : end + 1] == '"'
        self._held = text[end:]
        return _unescape(text[:end])

    def _open(self, fragment: str) -> int:
        """Read the opening; return how much of the fragment belongs to it."""
        for at, character in enumerate(fragment):
            if character == _OPENING[self._place]:
                self._place += 1
                if self._place == len(_OPENING):
                    return at + 1
            elif not (character.isspace() and self._place in _BLANK_BEFORE):
                self._is_raw = True
                break
        return len(fragment)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    shown = _ESCAPE.sub(_character, text)
    return shown.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # joins pairs, and shows lone ones as such


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else _SHORT.get(escape[2], escape[2])
