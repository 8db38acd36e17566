"""Pure. Tool calls as a client asked for them: one at most, or nothing else."""

from frontend.deltas import CallArguments, CallStart, Delta, Parser, TextDelta


class FirstCall:
    """A parser that leaves out all calls but the first: what the model says beside them stays."""

    __slots__ = ("_parser",)

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Delta]:
        """Take the next characters."""
        return _without_others(self._parser.push(text))

    def finish(self) -> list[Delta]:
        """Take the end."""
        return _without_others(self._parser.finish())


class ForcedCalls:
    """A parser of an answer that has to be calls: the beginning of one that was cut off before its name is no text."""

    __slots__ = ("_parser",)

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Delta]:
        """Take the next characters."""
        return self._parser.push(text)

    def finish(self) -> list[Delta]:
        """Take the end, and leave out what would be text only because nothing follows."""
        return [delta for delta in self._parser.finish() if not isinstance(delta, TextDelta)]


def _without_others(deltas: list[Delta]) -> list[Delta]:
    return [delta for delta in deltas if not isinstance(delta, CallStart | CallArguments) or not delta.call]
