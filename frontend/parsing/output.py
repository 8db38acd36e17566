"""Pure. Collects the deltas of one choice: white space around reasoning and calls goes, pieces of a kind are joined."""

from collections.abc import Callable

from frontend.deltas import CallArguments, CallStart, Delta, ReasoningDelta, TextDelta

_MAX_HELD_BLANKS = 64
"""White space at the end of a text that waits for what follows; of longer runs the beginning is shown."""


class _Trimmed:
    """Text without white space before it (if fresh) and where it is cut off; a line break parts what is left."""

    __slots__ = ("_break", "_has_shown", "_held", "_is_fresh")

    def __init__(self, *, is_fresh: bool) -> None:
        self._is_fresh = is_fresh
        self._has_shown = False
        self._break = ""
        self._held = ""

    def push(self, text: str) -> str:
        """Return what may be shown by now."""
        if self._is_fresh:
            text = text.lstrip()
            if not text:
                return ""
            self._is_fresh = False
            text = self._break + text
        text = self._held + text
        cut = max(len(text.rstrip()), len(text) - _MAX_HELD_BLANKS)
        self._held = text[cut:]
        self._has_shown = self._has_shown or cut > 0
        return text[:cut]

    def cut_off(self) -> None:
        """Forget the white space at the end, and that which follows."""
        self._held = ""
        self._is_fresh = True
        self._break = "\n" if self._has_shown else ""

    def finish(self) -> str:
        """Return the white space at the end."""
        held, self._held = self._held, ""
        return held


class Output:
    """Deltas since the last `take`, in order; no two neighbours are of one kind and call."""

    __slots__ = ("_call", "_deltas", "_ids", "_kind", "_new_id", "_parts", "_reasoning", "_text", "has_text")

    def __init__(self, new_id: Callable[[str, int], str], *, in_reasoning: bool) -> None:
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._kind: type[TextDelta] | type[ReasoningDelta] | type[CallArguments] = TextDelta
        self._parts: list[str] = []
        """Of one delta of `_kind` that may still grow."""
        self._call = -1
        self._ids: set[str] = set()
        self._text = _Trimmed(is_fresh=in_reasoning)
        self._reasoning = _Trimmed(is_fresh=True)
        self.has_text = False
        """Other text than white space came."""

    def text(self, text: str) -> None:
        """Add visible text."""
        self._add(TextDelta, self._text.push(text))
        if not self.has_text:
            self.has_text = bool(text.strip())

    def reasoning(self, text: str) -> None:
        """Add what the model thinks."""
        self._text.cut_off()
        self._add(ReasoningDelta, self._reasoning.push(text))

    def end_reasoning(self) -> None:
        """What follows is no reasoning."""
        self._reasoning.cut_off()
        self._text.cut_off()

    def start_call(self, name: str, call_id: str = "") -> None:
        """Begin a call; without an id of the model's, or with one that it used before, it gets a new one."""
        self._text.cut_off()
        self._flush()
        self._call += 1
        if not call_id or call_id in self._ids:
            call_id = self._new_id(name, self._call)
        self._ids.add(call_id)
        self._deltas.append(CallStart(self._call, call_id, name))

    def arguments(self, fragment: str) -> None:
        """Add to the arguments of the last call."""
        self._add(CallArguments, fragment)

    def finish(self) -> None:
        """Add what was held back, when nothing follows."""
        self._add(TextDelta, self._text.finish())

    def take(self) -> list[Delta]:
        """Return the deltas and begin anew."""
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _add(self, kind: type[TextDelta] | type[ReasoningDelta] | type[CallArguments], text: str) -> None:
        if not text:
            return
        if kind is not self._kind:
            self._flush()
            self._kind = kind
        self._parts.append(text)

    def _flush(self) -> None:
        if not self._parts:
            return
        text = "".join(self._parts)
        self._parts.clear()
        if self._kind is CallArguments:
            self._deltas.append(CallArguments(self._call, text))
        elif self._kind is ReasoningDelta:
            self._deltas.append(ReasoningDelta(text))
        else:
            self._deltas.append(TextDelta(text))
