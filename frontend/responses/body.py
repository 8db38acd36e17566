"""Pure. Request bodies of OpenAI's Responses API, decoded with types and bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from frontend.hints import BuswayHints, NvExt
from frontend.openai.body import NOTHING, CheckedBodyDecoder, ServiceTier, TokenCount

MAX_ITEMS = 10_000

Raw = msgspec.Raw


class TextFormat(msgspec.Struct, frozen=True):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema: Raw = NOTHING
    strict: bool | None = None
    description: str | None = None


class TextConfig(msgspec.Struct, frozen=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """`reasoning`. There are no summaries here: thoughts are shown as they are."""

    effort: Annotated[str, Meta(max_length=64)] | None = None
    summary: str | None = None


class PromptBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/responses/input_tokens`: what becomes the prompt."""

    model: str = ""
    input: str | Annotated[list[Raw], Meta(max_length=MAX_ITEMS)] | None = None
    instructions: str | None = None
    tools: Annotated[list[Raw], Meta(max_length=512)] | None = None
    tool_choice: Raw = NOTHING
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Raw = NOTHING
    prompt: Raw = NOTHING


class ResponsesBody(PromptBody, frozen=True, kw_only=True):
    """Body of `POST /v1/responses`."""

    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: Raw = NOTHING
    include: Annotated[list[str], Meta(max_length=32)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=256)] | None = None
    service_tier: ServiceTier | None = None
    busway: BuswayHints | None = None
    nvext: NvExt | None = None


responses_body: CheckedBodyDecoder[ResponsesBody] = CheckedBodyDecoder(ResponsesBody)
prompt_body: CheckedBodyDecoder[PromptBody] = CheckedBodyDecoder(PromptBody)
