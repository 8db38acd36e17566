"""Pure. One tool call at most, for clients that asked for no parallel ones."""

from frontend.deltas import CallArguments, CallStart, Delta, Parser


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


def _without_others(deltas: list[Delta]) -> list[Delta]:
    return [delta for delta in deltas if not isinstance(delta, CallStart | CallArguments) or not delta.call]
