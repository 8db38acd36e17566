"""Pure. What the text of one choice means: visible text, reasoning, tool calls; the form that every API renders."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from frontend.errors import ErrorBody
from frontend.pieces import TokenPiece
from frontend.request import Usage

Ending = Literal["stop", "length", "tool_calls", "abort"]


class TextDelta(NamedTuple):
    """Text that the client is to see."""

    text: str


class ReasoningDelta(NamedTuple):
    """Text that the model thinks aloud."""

    text: str


class CallStart(NamedTuple):
    """Tool call number `call` of this choice begins, from 0."""

    call: int
    call_id: str
    name: str


class CallArguments(NamedTuple):
    """The next characters of a call's arguments; all of a call joined are one JSON object, or a custom tool's input."""

    call: int
    fragment: str


Delta = TextDelta | ReasoningDelta | CallStart | CallArguments


class Parser(Protocol):
    """Reads one choice's text as it comes. The deltas joined do not depend on how the text is cut. Raises nothing:
    what cannot be read is text."""

    def push(self, text: str) -> list[Delta]:
        """Take the next characters."""

    def finish(self) -> list[Delta]:
        """Take the end."""


class ParsedCall(NamedTuple):
    """A whole tool call; `arguments` as the fragments of `CallArguments` joined."""

    call_id: str
    name: str
    arguments: str


class ChoiceEnd(msgspec.Struct, frozen=True):
    """How one choice ended; `stop_string` is the one that was found."""

    reason: Ending
    stop_string: str | None = None


class Choice(NamedTuple):
    """A whole choice, number `number` of the answer, from 0."""

    number: int
    text: str
    reasoning: str
    calls: tuple[ParsedCall, ...]
    pieces: Sequence[TokenPiece]
    """Every output token, if log-probabilities were asked for."""
    end: ChoiceEnd


class DeltaChunks(Protocol):
    """How one API writes one choice of a streamed answer. It may keep state."""

    def opening(self) -> bytes:
        """Render what comes before anything else, once."""

    def deltas(self, deltas: Sequence[Delta], pieces: Sequence[TokenPiece]) -> bytes:
        """Render what one flush brought; `pieces` as in `Choice`, those that begin in it."""

    def closing(self, end: ChoiceEnd, usage: Usage) -> bytes:
        """Render the end of a choice that went well."""

    def broken(self, error: ErrorBody) -> bytes:
        """Render the end of a stream that failed on its way."""


class TextChunks(DeltaChunks, Protocol):
    """Chunks whose text needs nothing but constant bytes around it: the cheap path."""

    head: bytes
    tail: bytes


class WholeAnswer(Protocol):
    """How one API writes an answer in one piece."""

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render it; `usage` is that of all choices together."""


class AnswerFacts(msgspec.Struct, frozen=True):
    """What every answer says about itself."""

    request_id: str
    """128 random bits in hex; APIs put their own prefix before it."""
    created: int
    """Unix seconds."""
    model: str
    prompt_tokens: int
    """Of all prompts together."""


class Dialect(Protocol):
    """One API family: how a turn is answered."""

    def chunks(self, facts: AnswerFacts, number: int) -> DeltaChunks:
        """Return the writer of choice `number` of a stream."""

    def text_chunks(self, facts: AnswerFacts, number: int) -> TextChunks | None:
        """Return the writer of a choice that is nothing but text, if this API has a cheaper one for that."""

    def ending(self, facts: AnswerFacts, usage: Usage) -> bytes:
        """Render what comes after the last choice of a stream."""

    def whole(self, facts: AnswerFacts) -> WholeAnswer:
        """Return the writer of an answer in one piece."""
