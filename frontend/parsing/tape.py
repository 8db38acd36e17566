"""Pure. Text that arrives in pieces, read by generators that yield when they need more of it.

A reader decides nothing that the next characters could still change, and gives up at a place that only the text
determines: so what is read does not depend on how the text was cut.
"""

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reader: it yields for more text and returns what it read."""
Put = Callable[[str], object]

_BLANK = re.compile(r"\s*")
_MAX_BLANKS = 256


class Ended(Exception):
    """A reader needs more text and none follows."""


class NotACall(Exception):
    """What looked like a tool call is text."""


class Tape:
    """The text that was not read yet, from `at` on, and what is held from `mark` on in case it turns out to be text."""

    __slots__ = ("at", "is_ended", "mark", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.mark: int | None = None
        self.is_ended = False

    def feed(self, text: str) -> None:
        """Add text at the end and forget what nobody can ask for again."""
        keep = self.at if self.mark is None else self.mark
        self.text = self.text[keep:] + text
        self.at -= keep
        if self.mark is not None:
            self.mark = 0

    @property
    def held(self) -> int:
        """Characters between the mark and the tape's position: a place to go `back` to, while there is a mark."""
        return self.at - (self.mark or 0)

    def back(self, held: int) -> None:
        """Unread down to a place that `held` told."""
        self.at = (self.mark or 0) + held

    def more(self) -> Reading[None]:
        """Wait for more text; raise `Ended` when none follows."""
        if self.is_ended:
            raise Ended
        yield

    def peek(self) -> Reading[str]:
        """Return the next character without reading it, nothing at the end of the text."""
        while self.at == len(self.text):
            if self.is_ended:
                return ""
            yield
        return self.text[self.at]

    def skip_blanks(self) -> Reading[None]:
        """Read white space; raise `NotACall` for more of it than any model means."""
        count = 0
        while True:
            end = _blank_end(self.text, self.at)
            count += end - self.at
            if count > _MAX_BLANKS:
                self.at = end - (count - _MAX_BLANKS)
                raise NotACall
            self.at = end
            if end < len(self.text) or self.is_ended:
                return
            yield

    def skip(self, literal: str) -> Reading[bool]:
        """Read this literal if it is what follows; say whether it was. Raises `Ended` where that cannot be known."""
        while True:
            if self.text.startswith(literal, self.at):
                self.at += len(literal)
                return True
            rest = self.text[self.at : self.at + len(literal)]
            if not literal.startswith(rest):
                return False
            yield from self.more()

    def expect(self, literal: str) -> Reading[None]:
        """Read this literal; raise `NotACall` where something else is."""
        if not (yield from self.skip(literal)):
            raise NotACall

    def head(self, stop: re.Pattern[str], limit: int) -> Reading[str]:
        """Return what is before the first match of `stop` (one character wide), which stays unread.

        Raises `NotACall` when it is longer than `limit`, with nothing read.
        """
        done = 0
        while True:
            found = stop.search(self.text, self.at + done, self.at + limit + 1)
            if found:
                start, self.at = self.at, found.start()
                return self.text[start : self.at]
            done = len(self.text) - self.at
            if done > limit:
                raise NotACall
            yield from self.more()

    def copy_until(self, markers: "Markers", put: Put) -> Reading[str]:
        """Hand over the text before the first marker as it comes, read the marker and return it.

        Raises `Ended` when no marker follows, all text handed over.
        """
        while True:
            found = markers.pattern.search(self.text, self.at)
            end = found.start() if found else len(self.text)
            if end > self.at:
                put(self.text[self.at : end])
                self.at = end
            if found and found[0] in markers.full:
                self.at = found.end()
                return found[0]
            if self.is_ended:
                if end < len(self.text):
                    put(self.text[end:])
                    self.at = len(self.text)
                raise Ended
            yield


class Markers:
    """Strings that are looked for together. None may be the beginning of another."""

    __slots__ = ("full", "pattern")

    def __init__(self, markers: Iterable[str]) -> None:
        self.full = frozenset(markers)
        whole = [re.escape(marker) for marker in sorted(self.full)]
        halves = {marker[:length] for marker in self.full for length in range(1, len(marker))}
        ends = [re.escape(half) + r"\Z" for half in sorted(halves, key=len, reverse=True)]
        self.pattern = re.compile("|".join([*whole, *ends]) or r"(?!)")
        """Finds a marker, or the half of one at the end of the text."""


def _blank_end(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at
