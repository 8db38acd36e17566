"""Pure. Request bodies of Anthropic's Messages API, decoded with types and bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from frontend.hints import BuswayHints, NvExt
from frontend.openai.body import NOTHING, CheckedBodyDecoder, StopString, TokenCount


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    """Text of a message, of the system prompt, or of a tool's result."""

    text: str


class DocumentSource(msgspec.Struct, frozen=True):
    """Where a document is: in `data` as text, or in `content`. What is of another type is no text."""

    type: str
    data: str = ""
    content: str | list[TextBlock] = ""


class DocumentBlock(msgspec.Struct, frozen=True, tag="document"):
    """A document; nobody cites it here."""

    source: DocumentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, frozen=True, tag="search_result"):
    """What a search of the client's found."""

    source: str
    title: str
    content: list[TextBlock]


TextualBlock = TextBlock | DocumentBlock | SearchResultBlock


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    """A call that the model made in an earlier turn; `input` is a JSON object."""

    id: str
    name: str
    input: msgspec.Raw = NOTHING


class ToolResultBlock(msgspec.Struct, frozen=True, tag="tool_result"):
    """What a tool gave back."""

    tool_use_id: str
    content: str | list[TextualBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    """What the model thought in an earlier turn; its signature is not looked at."""

    thinking: str


class RedactedThinkingBlock(msgspec.Struct, frozen=True, tag="redacted_thinking"):
    """Thoughts that nobody can read; they are left out."""


Block = TextualBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct, frozen=True):
    """A tool that the model may call; tools with a `type` other than `custom` run at Anthropic only."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: msgspec.Raw = NOTHING
    type: str | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`tool_choice`; `name` belongs to `tool`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    """`thinking`: whether the model is to think before it answers."""

    type: str
    budget_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None


class OutputFormat(msgspec.Struct, frozen=True):
    """`output_config.format`."""

    type: Literal["json_schema"]
    schema: msgspec.Raw


class OutputConfig(msgspec.Struct, frozen=True):
    """`output_config`."""

    effort: Annotated[str, Meta(max_length=64)] | None = None
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/messages/count_tokens`: what becomes the prompt."""

    model: str = ""
    messages: Annotated[list[Message], Meta(min_length=1, max_length=100_000)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Meta(max_length=512)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: msgspec.Raw = NOTHING


class MessagesBody(CountBody, frozen=True, kw_only=True):
    """Body of `POST /v1/messages`."""

    max_tokens: TokenCount
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=16)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    metadata: msgspec.Raw = NOTHING
    busway: BuswayHints | None = None
    nvext: NvExt | None = None


messages_body: CheckedBodyDecoder[MessagesBody] = CheckedBodyDecoder(MessagesBody)
count_body: CheckedBodyDecoder[CountBody] = CheckedBodyDecoder(CountBody)
