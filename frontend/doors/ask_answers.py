"""Pure. What a plain NATS client is answered: small JSON messages, one for all or one per piece of text."""

from collections.abc import Sequence

import msgspec

from frontend.deltas import AnswerFacts, Choice, ChoiceEnd, Delta, TextDelta
from frontend.errors import ErrorBody, envelope
from frontend.openai.answers import UsageBody, usage_body
from frontend.pieces import TokenPiece
from frontend.request import Usage
from frontend.vocabulary import escape


class _End(msgspec.Struct, frozen=True, kw_only=True):
    text: str | msgspec.UnsetType = msgspec.UNSET
    done: bool = True
    finish_reason: str
    model: str
    request_id: str
    usage: UsageBody


def _render_end(facts: AnswerFacts, end: ChoiceEnd, usage: Usage, text: str | msgspec.UnsetType) -> bytes:
    shown = _End(
        text=text,
        finish_reason=end.reason,
        model=facts.model,
        request_id=facts.request_id,
        usage=usage_body(usage),
    )
    return msgspec.json.encode(shown)


class AskChunks:
    """Messages of a streamed answer: `{"text": "..."}` each, and a last one with `done`."""

    head = b'{"text":"'
    tail = b'"}'

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts

    def opening(self) -> bytes:
        """Nothing comes before the text."""
        return b""

    def deltas(self, deltas: Sequence[Delta], pieces: Sequence[TokenPiece]) -> bytes:
        """Render text; nothing else is shown here."""
        text = "".join([delta.text for delta in deltas if isinstance(delta, TextDelta)])
        return self.head + escape(text) + self.tail

    def closing(self, end: ChoiceEnd, usage: Usage) -> bytes:
        """Render the last message."""
        return _render_end(self._facts, end, usage, msgspec.UNSET)

    def broken(self, error: ErrorBody) -> bytes:
        """Render the last message of an answer that failed on its way."""
        return envelope(error)


class AskAnswer:
    """The one message of an answer that does not stream."""

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render text and end together."""
        choice = choices[0]
        return _render_end(self._facts, choice.end, usage, choice.text)


class AskDialect:
    """How questions on NATS are answered."""

    def chunks(self, facts: AnswerFacts, number: int) -> AskChunks:
        """Return the writer of a stream."""
        return AskChunks(facts)

    def text_chunks(self, facts: AnswerFacts, number: int) -> AskChunks:
        """Return the writer of a stream of nothing but text."""
        return AskChunks(facts)

    def ending(self, facts: AnswerFacts, usage: Usage) -> bytes:
        """The last message of the choice is the last of all."""
        return b""

    def whole(self, facts: AnswerFacts) -> AskAnswer:
        """Return the writer of an answer in one piece."""
        return AskAnswer(facts)
