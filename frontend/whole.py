"""Pure. What happens to the tokens of a choice that is answered in one piece."""

from bus.errors import BuswayError
from bus.messages.inference import FinishReason
from frontend.deltas import CallArguments, CallStart, Choice, ChoiceEnd, Delta, ParsedCall, ReasoningDelta
from frontend.joint import JointAnswer
from frontend.pieces import TokenPiece
from frontend.request import Logprobs, Usage
from frontend.stream import Reader
from frontend.vocabulary import Vocabulary


class TextAnswer:
    """Collects plain text."""

    __slots__ = ("_joint", "_number", "_tokens", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, joint: JointAnswer, number: int = 0) -> None:
        self._vocabulary = vocabulary
        self._joint = joint
        self._number = number
        self._tokens: list[int] = []

    def push(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)

    def push_logprobs(self, logprobs: Logprobs) -> None:
        """Drop: they were not asked for."""

    def flush(self) -> bool:
        """Show nothing yet."""
        return False

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Hand over the whole text."""
        text = self._vocabulary.decode(self._tokens)
        self._joint.finish(Choice(self._number, text, "", (), (), ChoiceEnd(reason)), usage)

    def fail(self, error: BuswayError) -> None:
        """Answer with an error."""
        self._joint.fail(error)


READ_AT_ONCE = 1024
"""Tokens of an answer that are read in one go: what would be left to its end would hold up all others."""


class DeltaAnswer:
    """Collects a choice whose text has to be read."""

    __slots__ = ("_deltas", "_joint", "_num_read", "_number", "_pieces", "_reader", "_taken")

    def __init__(self, reader: Reader, joint: JointAnswer, number: int = 0) -> None:
        self._pieces = reader.pieces
        self._reader = reader
        self._joint = joint
        self._number = number
        self._deltas: list[Delta] = []
        self._taken: list[TokenPiece] = []
        self._num_read = 0

    def push(self, token: int) -> None:
        """Take the next token."""
        self._pieces.push(token)

    def push_logprobs(self, logprobs: Logprobs) -> None:
        """Take what belongs to a token."""
        self._pieces.push_logprobs(logprobs)

    def flush(self) -> bool:
        """Read now and then; say whether a stop string is complete."""
        if self._pieces.num_tokens - self._num_read >= READ_AT_ONCE:
            text, pieces = self._pieces.take()
            self._num_read = self._pieces.num_tokens
            self._taken += pieces
            self._deltas += self._reader.read(text)
        return self._pieces.has_stopped

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Hand over what the text says."""
        text, pieces = self._pieces.finish()
        deltas = self._deltas + self._reader.read_end(text)
        choice = to_choice(self._number, deltas, self._taken + pieces, self._reader.end(reason))
        self._joint.finish(choice, self._reader.count(usage))

    def fail(self, error: BuswayError) -> None:
        """Answer with an error."""
        self._joint.fail(error)


def to_choice(number: int, deltas: list[Delta], pieces: list[TokenPiece], end: ChoiceEnd) -> Choice:
    """Join the deltas of a choice."""
    text: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, tuple[CallStart, list[str]]] = {}
    for delta in deltas:
        if isinstance(delta, CallStart):
            calls[delta.call] = (delta, [])
        elif isinstance(delta, CallArguments):
            calls[delta.call][1].append(delta.fragment)
        elif isinstance(delta, ReasoningDelta):
            reasoning.append(delta.text)
        else:
            text.append(delta.text)
    parsed = tuple(ParsedCall(start.call_id, start.name, "".join(parts)) for start, parts in calls.values())
    return Choice(number, "".join(text), "".join(reasoning), parsed, pieces, end)
