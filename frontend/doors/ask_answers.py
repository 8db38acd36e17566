"""Pure. What a plain NATS client is answered: small JSON messages, one for all or one per piece of text."""

from collections.abc import Sequence

import msgspec

from bus.messages.inference import FinishReason
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


def _render_end(model: str, request_id: str, reason: FinishReason, usage: Usage, text: str | None = None) -> bytes:
    end = _End(
        text=msgspec.UNSET if text is None else text,
        finish_reason=reason,
        model=model,
        request_id=request_id,
        usage=usage_body(usage),
    )
    return msgspec.json.encode(end)


class AskChunks:
    """Messages of a streamed answer: `{"text": "..."}` each, and a last one with `done`."""

    opening = b""
    head = b'{"text":"'
    tail = b'"}'

    def __init__(self, request_id: str, model: str) -> None:
        self._request_id = request_id
        self._model = model

    def piece(self, text: str, pieces: Sequence[TokenPiece]) -> bytes:
        """Render text; log-probabilities are not shown here."""
        return self.head + escape(text) + self.tail

    def closing(self, reason: FinishReason, usage: Usage) -> bytes:
        """Render the last message."""
        return _render_end(self._model, self._request_id, reason, usage)

    def broken(self, error: ErrorBody) -> bytes:
        """Render the last message of an answer that failed on its way."""
        return envelope(error)


class AskAnswer:
    """The one message of an answer that does not stream."""

    def __init__(self, request_id: str, model: str) -> None:
        self._request_id = request_id
        self._model = model

    def render(self, text: str, pieces: Sequence[TokenPiece], reason: FinishReason, usage: Usage) -> bytes:
        """Render text and end together."""
        return _render_end(self._model, self._request_id, reason, usage, text)
