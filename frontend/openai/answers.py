"""Pure. Whole answers in the shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from bus.messages.inference import FinishReason
from frontend.openai.logprobs import chat_logprobs, completion_logprobs
from frontend.pieces import TokenPiece
from frontend.request import Usage
from frontend.vocabulary import Vocabulary

Kind = Literal["chat", "completion"]

_json = msgspec.json.encode


class PromptDetails(msgspec.Struct, frozen=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """`usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def usage_body(usage: Usage) -> UsageBody:
    """Say in OpenAI's words what a request took."""
    total = usage.prompt_tokens + usage.output_tokens
    return UsageBody(usage.prompt_tokens, usage.output_tokens, total, PromptDetails(usage.cached_tokens))


class _Message(msgspec.Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class _ChatChoice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str
    logprobs: msgspec.Raw
    index: int = 0


class _CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str
    logprobs: msgspec.Raw
    index: int = 0


class _Answer(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: UsageBody


class WholeAnswer:
    """The answer to a request that does not stream."""

    def __init__(
        self, kind: Kind, request_id: str, created: int, model: str, *, logprobs_of: Vocabulary | None = None
    ) -> None:
        """`logprobs_of` None leaves log-probabilities out."""
        self._kind = kind
        self._request_id = request_id
        self._created = created
        self._model = model
        self._logprobs_of = logprobs_of

    def render(self, text: str, pieces: Sequence[TokenPiece], reason: FinishReason, usage: Usage) -> bytes:
        """Render the object."""
        is_chat = self._kind == "chat"
        logprobs = msgspec.Raw(b"null")
        if self._logprobs_of is not None:
            render = chat_logprobs if is_chat else completion_logprobs
            logprobs = msgspec.Raw(render(self._logprobs_of, pieces))
        choice: Any
        if is_chat:
            name, kind = f"chatcmpl-{self._request_id}", "chat.completion"
            choice = _ChatChoice(_Message(text), reason, logprobs)
        else:
            name, kind = f"cmpl-{self._request_id}", "text_completion"
            choice = _CompletionChoice(text, reason, logprobs)
        return _json(_Answer(name, kind, self._created, self._model, [choice], usage_body(usage)))


class _Model(msgspec.Struct, frozen=True):
    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "busway"
    context_window: int = 0


def model_body(name: str, created: int, max_model_len: int) -> bytes:
    """Render one entry of `GET /v1/models`."""
    return _json(_Model(name, created, max_model_len, context_window=max_model_len))


def model_list(models: Sequence[bytes]) -> bytes:
    """Render `GET /v1/models`."""
    return b'{"object":"list","data":[%b]}' % b",".join(models)
