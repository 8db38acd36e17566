"""Pure. Whole answers in the shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

import msgspec

from frontend.deltas import AnswerFacts, Choice, ChoiceEnd
from frontend.openai.logprobs import chat_logprobs, completion_logprobs
from frontend.request import Usage
from frontend.vocabulary import Vocabulary

NULL = msgspec.Raw(b"null")

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


class _CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class _ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: _CalledFunction
    type: str = "function"


class _Message(msgspec.Struct, frozen=True, omit_defaults=True):
    content: str | None
    role: str
    refusal: str | None
    tool_calls: list[_ToolCall] = []
    reasoning_content: str = ""
    reasoning: str = ""


class _ChatChoice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str
    logprobs: msgspec.Raw
    index: int


class _CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str
    logprobs: msgspec.Raw
    index: int


class _Answer(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: UsageBody


class ChatAnswer:
    """The answer of chat completions to a request that does not stream."""

    def __init__(self, facts: AnswerFacts, logprobs_of: Vocabulary | None) -> None:
        """`logprobs_of` None leaves log-probabilities out."""
        self._facts = facts
        self._logprobs_of = logprobs_of

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render the object."""
        shown = [self._show(choice) for choice in choices]
        name = f"chatcmpl-{self._facts.request_id}"
        return _json(_Answer(name, "chat.completion", self._facts.created, self._facts.model, shown, usage_body(usage)))

    def _show(self, choice: Choice) -> _ChatChoice:
        calls = [_ToolCall(call.call_id, _CalledFunction(call.name, call.arguments)) for call in choice.calls]
        text = None if calls and not choice.text else choice.text
        message = _Message(text, "assistant", None, calls, choice.reasoning, choice.reasoning)
        logprobs = NULL if self._logprobs_of is None else msgspec.Raw(chat_logprobs(self._logprobs_of, choice.pieces))
        return _ChatChoice(message, choice.end.reason, logprobs, choice.number)


class CompletionAnswer:
    """The answer of completions to a request that does not stream."""

    def __init__(
        self,
        facts: AnswerFacts,
        logprobs_of: Vocabulary | None,
        echoes: Sequence[str],
        num_choices: int,
        *,
        is_only_echo: bool = False,
    ) -> None:
        """`echoes` are the prompts that choices begin with, `num_choices` each; empty for none. `is_only_echo`
        leaves out what was generated."""
        self._facts = facts
        self._logprobs_of = logprobs_of
        self._echoes = echoes
        self._num_choices = num_choices
        self._is_only_echo = is_only_echo

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render the object."""
        if self._is_only_echo:
            end = ChoiceEnd("length")
            choices = [choice._replace(text="", pieces=(), end=end) for choice in choices]
            usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        shown = [self._show(choice) for choice in choices]
        name = f"cmpl-{self._facts.request_id}"
        return _json(_Answer(name, "text_completion", self._facts.created, self._facts.model, shown, usage_body(usage)))

    def _show(self, choice: Choice) -> _CompletionChoice:
        echo = self._echoes[choice.number // self._num_choices] if self._echoes else ""
        logprobs = NULL
        if self._logprobs_of is not None:
            logprobs = msgspec.Raw(completion_logprobs(self._logprobs_of, choice.pieces, len(echo)))
        return _CompletionChoice(echo + choice.text, choice.end.reason, logprobs, choice.number)


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
