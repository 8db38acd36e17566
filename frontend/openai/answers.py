"""Pure. Whole answers in the shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from frontend.deltas import AnswerFacts, Choice, ChoiceEnd, ParsedCall
from frontend.openai.logprobs import chat_logprobs, completion_logprobs
from frontend.request import Usage
from frontend.vocabulary import Vocabulary

NULL = msgspec.Raw(b"null")

_json = msgspec.json.encode


class CallShape(msgspec.Struct, frozen=True, kw_only=True):
    """How calls are shown."""

    ending: Literal["tool_calls", "function_call", "stop"] = "tool_calls"
    """How a choice ended that calls."""
    custom: frozenset[str] = frozenset()
    """Names of custom tools: what they are called with is text."""
    is_function: bool = False
    """There is one call at most, in `function_call`, as before there were tools."""


TOOL_CALLS = CallShape()


class PromptDetails(msgspec.Struct, frozen=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """`usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_body(usage: Usage) -> UsageBody:
    """Say in OpenAI's words what a request took."""
    total = usage.prompt_tokens + usage.output_tokens
    cached, thought = PromptDetails(usage.cached_tokens), CompletionDetails(usage.reasoning_tokens)
    return UsageBody(usage.prompt_tokens, usage.output_tokens, total, cached, thought)


class CalledFunction(msgspec.Struct, frozen=True):
    """The function of a tool call; `arguments` is JSON in a string."""

    name: str
    arguments: str


class CalledTool(msgspec.Struct, frozen=True, tag="function"):
    """A tool call of the answer."""

    id: str
    function: CalledFunction


class CalledText(msgspec.Struct, frozen=True):
    """The custom tool of a call, and its input."""

    name: str
    input: str


class CalledCustom(msgspec.Struct, frozen=True, tag="custom"):
    """A call of a custom tool."""

    id: str
    custom: CalledText


class MessageShown(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the model says; its reasoning under the two names that clients look for."""

    content: str | None
    role: str
    refusal: str | None
    tool_calls: list[CalledTool | CalledCustom] = []
    function_call: CalledFunction | None = None
    reasoning_content: str = ""
    reasoning: str = ""


class ChatChoice(msgspec.Struct, frozen=True):
    """One choice of a chat completion."""

    message: MessageShown
    finish_reason: str
    logprobs: msgspec.Raw
    index: int
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    """One choice of a completion; only chunks have no finish reason."""

    text: str
    finish_reason: str | None
    logprobs: msgspec.Raw
    index: int
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class ChatShown(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of chat completions."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET


class CompletionShown(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of completions, and the chunks of its stream (which have the usage in one place only)."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None = None


class TextPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the call of a custom tool."""

    input: str
    name: str | None = None


class FunctionPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the function of a tool call."""

    arguments: str
    name: str | None = None


class CallPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to tool call number `index`; the first has id, type and name."""

    index: int
    function: FunctionPiece | None = None
    custom: TextPiece | None = None
    id: str | None = None
    type: str | None = None


class DeltaShown(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallPiece] = []
    function_call: FunctionPiece | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """What a chunk adds to one choice."""

    index: int
    delta: DeltaShown
    logprobs: msgspec.Raw
    finish_reason: str | None


class ChunkShown(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of a streamed chat completion, as `frontend.openai.chunks` renders it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None
    service_tier: str | None = None


class ChatAnswer:
    """The answer of chat completions to a request that does not stream."""

    def __init__(
        self,
        facts: AnswerFacts,
        logprobs_of: Vocabulary | None,
        prompts: Sequence[Sequence[int]] = (),
        calls: CallShape = TOOL_CALLS,
        tier: str = "",
    ) -> None:
        """`logprobs_of` None leaves log-probabilities out, no `prompts` the ids of tokens, no `tier` that."""
        self._calls = calls
        self._tier = tier
        self._facts = facts
        self._logprobs_of = logprobs_of
        self._prompts = prompts

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render the object."""
        shown = [self._show(choice) for choice in choices]
        facts = self._facts
        name = f"chatcmpl-{facts.request_id}"
        return _json(
            ChatShown(
                id=name,
                created=facts.created,
                model=facts.model,
                choices=shown,
                usage=usage_body(usage),
                prompt_token_ids=self._prompts[0] if self._prompts else msgspec.UNSET,
                service_tier=self._tier or msgspec.UNSET,
            )
        )

    def _show(self, choice: Choice) -> ChatChoice:
        calls = [self._call(call) for call in choice.calls]
        text = None if calls and not choice.text else choice.text
        function = None
        if self._calls.is_function and choice.calls:
            function, calls = CalledFunction(choice.calls[0].name, choice.calls[0].arguments), []
        message = MessageShown(text, "assistant", None, calls, function, choice.reasoning, choice.reasoning)
        logprobs = NULL if self._logprobs_of is None else msgspec.Raw(chat_logprobs(self._logprobs_of, choice.pieces))
        ids = _token_ids(choice) if self._prompts else msgspec.UNSET
        reason = self._calls.ending if choice.end.reason == "tool_calls" else choice.end.reason
        return ChatChoice(message, reason, logprobs, choice.number, ids)

    def _call(self, call: ParsedCall) -> CalledTool | CalledCustom:
        if call.name in self._calls.custom:
            return CalledCustom(call.call_id, CalledText(call.name, call.arguments))
        return CalledTool(call.call_id, CalledFunction(call.name, call.arguments))


def _token_ids(choice: Choice) -> list[int]:
    return [piece.token for piece in choice.pieces if piece.start >= 0]


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
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        """`echoes` are the prompts that choices begin with, `num_choices` each; empty for none. `is_only_echo`
        leaves out what was generated. `prompts` as in `ChatAnswer`."""
        self._prompts = prompts
        self._facts = facts
        self._logprobs_of = logprobs_of
        self._echoes = echoes
        self._num_choices = num_choices
        self._is_only_echo = is_only_echo

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render the object."""
        if self._is_only_echo:
            end = ChoiceEnd("length")
            choices = [
                choice._replace(text="", pieces=[piece for piece in choice.pieces if piece.start < 0], end=end)
                for choice in choices
            ]
            usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        shown = [self._show(choice) for choice in choices]
        facts = self._facts
        name = f"cmpl-{facts.request_id}"
        return _json(
            CompletionShown(id=name, created=facts.created, model=facts.model, choices=shown, usage=usage_body(usage))
        )

    def _show(self, choice: Choice) -> CompletionChoice:
        echo = self._echoes[choice.number // self._num_choices] if self._echoes else ""
        logprobs = NULL
        if self._logprobs_of is not None:
            logprobs = msgspec.Raw(completion_logprobs(self._logprobs_of, choice.pieces, len(echo)))
        text, reason = echo + choice.text, choice.end.reason
        if not self._prompts:
            return CompletionChoice(text, reason, logprobs, choice.number)
        prompt = self._prompts[choice.number // self._num_choices]
        return CompletionChoice(text, reason, logprobs, choice.number, _token_ids(choice), prompt)


class ModelShown(msgspec.Struct, frozen=True):
    """One model."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "busway"
    context_window: int = 0


class ModelsShown(msgspec.Struct, frozen=True):
    """The models that are served."""

    data: list[ModelShown]
    object: str = "list"


def model_body(name: str, created: int, max_model_len: int) -> bytes:
    """Render one entry of `GET /v1/models`."""
    return _json(ModelShown(name, created, max_model_len, context_window=max_model_len))


def model_list(models: Sequence[bytes]) -> bytes:
    """Render `GET /v1/models`."""
    return b'{"object":"list","data":[%b]}' % b",".join(models)
