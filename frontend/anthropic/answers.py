"""Pure. Answers in the shapes of Anthropic's Messages API."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from frontend.deltas import AnswerFacts, Choice, ChoiceEnd, Ending
from frontend.request import Usage

_STOP_REASONS: dict[Ending, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "abort": "end_turn",
}

_json = msgspec.json.encode


class OutputDetails(msgspec.Struct, frozen=True):
    """`usage.output_tokens_details`."""

    thinking_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """`usage`: input tokens that came from the cache count apart, as Anthropic has it."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails(0)
    server_tool_use: None = None


class CacheCreation(msgspec.Struct, frozen=True):
    """`usage.cache_creation`: nobody pays for writing to the cache here."""

    ephemeral_1h_input_tokens: int = 0
    ephemeral_5m_input_tokens: int = 0


class MessageUsage(UsageBody, frozen=True):
    """`usage` of a message."""

    cache_creation: CacheCreation = CacheCreation()
    inference_geo: None = None
    service_tier: str = "standard"
    speed: None = None


class TextShown(msgspec.Struct, frozen=True, tag="text"):
    """A text block."""

    text: str
    citations: None = None


class ThinkingShown(msgspec.Struct, frozen=True, tag="thinking"):
    """A block of thoughts. Nobody verifies the signature: clients send it back, and we do not look at it."""

    thinking: str
    signature: str


class Direct(msgspec.Struct, frozen=True, tag="direct"):
    """`caller` of a tool: the model, and no program of its."""


class ToolUseShown(msgspec.Struct, frozen=True, tag="tool_use"):
    """A tool call."""

    id: str
    name: str
    input: msgspec.Raw
    caller: Direct = Direct()
    toolset_name: None = None


BlockShown = TextShown | ThinkingShown | ToolUseShown


class MessageShown(msgspec.Struct, frozen=True, tag="message", kw_only=True):
    """A message, whole or as it begins."""

    id: str
    role: str = "assistant"
    model: str
    content: Sequence[BlockShown]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None
    diagnostics: None = None
    usage: MessageUsage


class StopShown(msgspec.Struct, frozen=True):
    """How a message ended."""

    stop_reason: str
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class ModelShown(msgspec.Struct, frozen=True, tag="model", kw_only=True):
    """One model; nobody knows when it was released: `created_at` is since when it is served."""

    id: str
    display_name: str
    created_at: datetime
    lifecycle: str = "active"
    max_input_tokens: int
    max_tokens: int
    capabilities: None = None
    line: None = None
    deprecated_at: None = None
    retires_at: None = None


class ModelsShown(msgspec.Struct, frozen=True):
    """All models, on one page."""

    data: list[ModelShown]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class TokenCountShown(msgspec.Struct, frozen=True):
    """The answer of `count_tokens`."""

    input_tokens: int


def message_id(facts: AnswerFacts) -> str:
    """Return the id of the message."""
    return f"msg_{facts.request_id}"


UsageT = TypeVar("UsageT", bound=UsageBody)


def usage_shown(kind: type[UsageT], usage: Usage) -> UsageT:
    """Say in Anthropic's words what a request took."""
    return kind(
        usage.prompt_tokens - usage.cached_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        output_tokens_details=OutputDetails(usage.reasoning_tokens),
    )


def stop_shown(end: ChoiceEnd) -> StopShown:
    """Say in Anthropic's words how a choice ended."""
    if end.stop_string is not None and end.reason == "stop":
        return StopShown("stop_sequence", end.stop_string)
    return StopShown(_STOP_REASONS[end.reason], None)


def model_shown(name: str, created_at: float, max_model_len: int) -> ModelShown:
    """Return one entry of `GET /v1/models`; `created_at` in unix seconds."""
    since = datetime.fromtimestamp(int(created_at), UTC)
    return ModelShown(
        id=name, display_name=name, created_at=since, max_input_tokens=max_model_len, max_tokens=max_model_len
    )


def models_shown(models: list[ModelShown]) -> ModelsShown:
    """Return `GET /v1/models`."""
    return ModelsShown(models, models[0].id if models else None, models[-1].id if models else None)


def token_count(num_tokens: int) -> bytes:
    """Render the answer of `count_tokens`."""
    return _json(TokenCountShown(num_tokens))


class WholeMessage:
    """The answer to a request that does not stream."""

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts

    def render(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """Render the one choice."""
        facts, choice = self._facts, choices[0]
        stop = stop_shown(choice.end)
        return _json(
            MessageShown(
                id=message_id(facts),
                model=facts.model,
                content=_blocks(choice, facts.request_id),
                stop_reason=stop.stop_reason,
                stop_sequence=stop.stop_sequence,
                usage=usage_shown(MessageUsage, usage),
            )
        )


def _blocks(choice: Choice, signature: str) -> list[BlockShown]:
    blocks: list[BlockShown] = []
    if choice.reasoning:
        blocks.append(ThinkingShown(choice.reasoning, signature))
    if choice.text or not (choice.reasoning or choice.calls):
        blocks.append(TextShown(choice.text))
    return blocks + [ToolUseShown(call.call_id, call.name, _input(call.arguments)) for call in choice.calls]


def _input(arguments: str) -> msgspec.Raw:
    """Return the arguments as the object that `input` has to be; a call that was cut off has none."""
    try:
        value = msgspec.json.decode(arguments or "{}", type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return msgspec.Raw(b"{}")
    return msgspec.Raw(_json(value))
