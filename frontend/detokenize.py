"""Pure. Tokens to text as they come: whole characters only, and nothing that may still become a stop string."""

import codecs
from collections.abc import Sequence

from frontend.vocabulary import Vocabulary

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Text of one sequence, token by token; the pieces joined are what `Vocabulary.decode` gives for all tokens."""

    __slots__ = ("_decoder", "_shown", "_text", "_vocabulary", "is_partial")

    def __init__(self, vocabulary: Vocabulary, shown: frozenset[int] = frozenset()) -> None:
        """`shown` are special tokens whose text is wanted: markers that a parser reads."""
        self._vocabulary = vocabulary
        self._shown = shown
        self._text = vocabulary.text
        self._decoder: codecs.IncrementalDecoder | None = None
        self.is_partial = False
        """Bytes of an unfinished character are held."""

    def push(self, token: int) -> str:
        """Return the characters that this token completes."""
        text = self._text[token] if token < len(self._text) else b""
        if token in self._shown:
            text = self._vocabulary.raw[token]
            if self.is_partial:
                return self.finish() + text.decode("utf-8", "replace")
        if text is not None and not self.is_partial:
            return text.decode()
        if text == b"":
            return ""
        if self._decoder is None:
            self._decoder = _new_decoder("replace")
        shown = self._decoder.decode(self._vocabulary.raw[token])
        self.is_partial = bool(self._decoder.getstate()[0])
        return shown

    def finish(self) -> str:
        """Return what is left when no token follows: U+FFFD for an incomplete character."""
        if self._decoder is None or not self.is_partial:
            return ""
        self.is_partial = False
        return self._decoder.decode(b"", True)


class StopFinder:
    """Looks for stop strings in a text that comes in pieces, and holds back what may be the start of one.

    The stop string that is complete first wins, the longest of those that end together; so the result does not
    depend on how the text is cut.
    """

    __slots__ = ("_held", "_longest", "_shows_stop", "_stops", "found", "has_stopped")

    def __init__(self, stops: Sequence[str], *, shows_stop: bool = False) -> None:
        """`shows_stop` leaves the stop string in the text."""
        self._stops = tuple(stops)
        self._shows_stop = shows_stop
        self._longest = max(map(len, stops))
        self._held = ""
        self.has_stopped = False
        self.found: str | None = None
        """The stop string that is complete."""

    def push(self, text: str) -> str:
        """Return the text that is certainly before any stop string; sets `has_stopped` once one is complete."""
        if self.has_stopped:
            return ""
        held = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            _, at, self.found = min(found)
            self.has_stopped = True
            self._held = ""
            return held[:at] + (self.found if self._shows_stop else "")
        cut = self._safe_length(held)
        self._held = held[cut:]
        return held[:cut]

    def finish(self) -> str:
        """Return what was held back, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _safe_length(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            rest = text[start:]
            if any(stop.startswith(rest) for stop in self._stops):
                return start
        return len(text)
