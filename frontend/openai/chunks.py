"""Pure. The chunks of a stream, in the shapes of OpenAI's API, rendered as far as possible before the first token."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from bus.messages.inference import FinishReason
from frontend.errors import ErrorBody, envelope
from frontend.openai.answers import usage_body
from frontend.openai.logprobs import RenderLogprobs, chat_logprobs, completion_logprobs
from frontend.pieces import TokenPiece
from frontend.request import Usage
from frontend.vocabulary import Vocabulary, escape


class Chunks(Protocol):
    """How a stream is written: constant bytes around the text of a token, and what comes before and after."""

    opening: bytes
    """Comes once, before the first text."""
    head: bytes
    tail: bytes

    def piece(self, text: str, pieces: Sequence[TokenPiece]) -> bytes:
        """Render text, with the log-probabilities of its tokens where they are wanted."""

    def closing(self, reason: FinishReason, usage: Usage) -> bytes:
        """Render the end of a stream that went well."""

    def broken(self, error: ErrorBody) -> bytes:
        """Render the end of a stream that failed on its way."""


class Shape(NamedTuple):
    """What differs between the two endpoints."""

    id_prefix: bytes
    object: bytes
    opening: bytes
    """The choice of the first chunk, if there is one without text."""
    before: bytes
    """What stands before the text in a choice, and after it up to `logprobs`."""
    after: bytes
    empty: bytes
    """The choice of the last chunk, up to `logprobs`."""
    render_logprobs: RenderLogprobs


CHAT = Shape(
    id_prefix=b"chatcmpl-",
    object=b"chat.completion.chunk",
    opening=b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}',
    before=b'{"index":0,"delta":{"content":"',
    after=b'"},"logprobs":',
    empty=b'{"index":0,"delta":{},"logprobs":',
    render_logprobs=chat_logprobs,
)
COMPLETION = Shape(
    id_prefix=b"cmpl-",
    object=b"text_completion",
    opening=b"",
    before=b'{"index":0,"text":"',
    after=b'","logprobs":',
    empty=b'{"index":0,"text":"","logprobs":',
    render_logprobs=completion_logprobs,
)


class EventChunks:
    """Server-sent events of a streamed answer."""

    def __init__(
        self,
        shape: Shape,
        request_id: str,
        created: int,
        model: bytes,
        *,
        include_usage: bool,
        logprobs_of: Vocabulary | None = None,
    ) -> None:
        """`model` is the model's name in JSON; `logprobs_of` None leaves log-probabilities out."""
        self._shape = shape
        self._logprobs_of = logprobs_of
        self._include_usage = include_usage
        self._start = b'data: {"id":"%b%b","object":"%b","created":%d,"model":%b,"choices":[' % (
            shape.id_prefix,
            request_id.encode(),
            shape.object,
            created,
            model,
        )
        # OpenAI says `usage: null` on every chunk before the one that has it.
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self.head = self._start + shape.before
        self.tail = shape.after + b'null,"finish_reason":null}' + self._end
        self.opening = self._start + shape.opening + self._end if shape.opening else b""

    def piece(self, text: str, pieces: Sequence[TokenPiece]) -> bytes:
        """Render text, with the log-probabilities of its tokens where they are wanted."""
        if self._logprobs_of is None:
            return self.head + escape(text) + self.tail
        logprobs = self._shape.render_logprobs(self._logprobs_of, pieces)
        return b'%b%b%b%b,"finish_reason":null}%b' % (self.head, escape(text), self._shape.after, logprobs, self._end)

    def closing(self, reason: FinishReason, usage: Usage) -> bytes:
        """Render the chunk with the finish reason, the chunk with the usage if wanted, and `[DONE]`."""
        finish = b'%b%bnull,"finish_reason":"%b"}%b' % (self._start, self._shape.empty, reason.encode(), self._end)
        if self._include_usage:
            finish += b'%b],"usage":%b}\n\n' % (self._start, msgspec.json.encode(usage_body(usage)))
        return finish + b"data: [DONE]\n\n"

    def broken(self, error: ErrorBody) -> bytes:
        """Render the error as an event of its own."""
        return b"data: %b\n\n" % envelope(error)
