"""Pure. Request bodies of OpenAI's chat completions and completions, decoded with types and bounds."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from bus.errors import InvalidRequest, Malformed
from frontend.hints import BuswayHints, NvExt
from frontend.openai.supported import supported_values
from frontend.openai.tools import (
    AllowedTools,
    FunctionCall,
    FunctionSpec,
    Named,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
)

_NAMES_UP_TO_BYTES = 256 * 2**10
"""Bodies larger than that get only the first unknown parameter named: listing all would cost memory."""

MAX_CHOICES = 128
"""Choices of one request, over all of its prompts."""

Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
TokenCount = Annotated[int, Meta(ge=1, le=2**31)]
TokenId = Annotated[int, Meta(ge=0, lt=2**32)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]


ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]
TIER_SHOWN = {"flex": "flex", "priority": "priority", "fast": "priority", "ultrafast": "priority"}
"""The tier that a request is served in, by the one that it asks for: `default` for the others."""

NOTHING: Any = msgspec.field(default_factory=msgspec.Raw)
"""Default of parameters that may be anything: no bytes at all. (A schema can show no default that is `Raw`.)"""


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """`structured_outputs`: at most one of these, as vLLM has them."""

    json: msgspec.Raw = NOTHING
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take. Clients send null for what they leave out, so every field takes it."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)] | None = (
        None
    )
    seed: Int64 | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    service_tier: ServiceTier | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=256)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: msgspec.Raw = NOTHING
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    guided_grammar: str | None = None
    busway: BuswayHints | None = None
    nvext: NvExt | None = None
    priority: Int64 | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    user: msgspec.Raw = NOTHING
    metadata: msgspec.Raw = NOTHING
    store: msgspec.Raw = NOTHING
    safety_identifier: msgspec.Raw = NOTHING
    prompt_cache_retention: msgspec.Raw = NOTHING


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only text is served so far."""

    type: str
    text: str = ""
    refusal: str = ""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """`response_format.json_schema`."""

    name: str = ""
    schema: msgspec.Raw = NOTHING
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`response_format`: what the text of the answer is to be."""

    type: Literal["text", "json_object", "json_schema", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    grammar: str | None = None


Scalar = str | int | float | bool | None


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=512)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionSpec], Meta(max_length=512)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    modalities: list[str] | None = None
    verbosity: msgspec.Raw = NOTHING
    prediction: msgspec.Raw = NOTHING
    web_search_options: msgspec.Raw = NOTHING
    chat_template_kwargs: Annotated[dict[str, Scalar], Meta(max_length=64)] | None = None

    @property
    def choice(self) -> Literal["none", "auto", "required"] | Named:
        """How the model is to choose among `offered`."""
        chosen = self.tool_choice or self.function_call or "auto"
        if isinstance(chosen, str):
            return chosen
        if isinstance(chosen, AllowedTools):
            return chosen.allowed_tools.mode
        return NamedTool(chosen) if isinstance(chosen, NamedFunction) else chosen

    @property
    def calls_functions(self) -> bool:
        """It is of the time before there were tools: `functions` are offered, and one at most is called."""
        return bool(self.functions) and not self.tools

    @property
    def offered(self) -> Sequence[Tool]:
        """The tools that may be called."""
        if not self.tools:
            if self.functions and self.function_call != "none":
                return [Tool(function=each) for each in self.functions]
            return ()
        if self.tool_choice == "none":
            return ()
        if not isinstance(self.tool_choice, AllowedTools):
            return self.tools
        names = {each.name for each in self.tool_choice.allowed_tools.tools}
        return [tool for tool in self.tools if tool.function.name in names]


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`; `prompt` is a string, token ids, or a list of either."""

    prompt: msgspec.Raw
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    suffix: str | None = None


T_co = TypeVar("T_co", bound=msgspec.Struct, covariant=True)


def renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """Return the error in the words of an API that has other `names` for parameters of chat completions, or parts.

    The first of `names` that fits holds.
    """
    param = error.param or ""
    for ours, theirs in names.items():
        if re.match(rf"{ours}(\Z|[.\[])", param):
            return InvalidRequest(str(error).replace(f"'{ours}", f"'{theirs}"), param=theirs + param[len(ours) :])
    return error


_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_token_ids: msgspec.json.Decoder[list[int]] = msgspec.json.Decoder(Annotated[list[TokenId], Meta(min_length=1)])
_token_lists: msgspec.json.Decoder[list[list[int]]] = msgspec.json.Decoder(
    Annotated[list[Annotated[list[TokenId], Meta(min_length=1)]], Meta(max_length=MAX_CHOICES)]
)
_text = msgspec.json.Decoder(str)
_texts: msgspec.json.Decoder[list[str]] = msgspec.json.Decoder(Annotated[list[str], Meta(max_length=MAX_CHOICES)])
_PATH = re.compile(r"at (?:`key` in )?`\$\.?([^`]*)`\Z")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_REFUSED = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)


class BodyDecoder(Generic[T_co]):
    """Decodes one kind of body in one pass, and in a second one only where unknown parameters are to be named."""

    def __init__(self, body: type[T_co]) -> None:
        strict = msgspec.defstruct(body.__name__, [], bases=(body,), frozen=True, forbid_unknown_fields=True)
        self._strict: msgspec.json.Decoder[T_co] = msgspec.json.Decoder(strict)
        self._lenient: msgspec.json.Decoder[T_co] = msgspec.json.Decoder(body)
        self._known = frozenset(field.name for field in msgspec.structs.fields(body))

    def decode(self, data: bytes) -> tuple[T_co, tuple[str, ...]]:
        """Return the body and the names of the parameters in it that are unknown here, and ignored.

        Raises `Malformed` for what is no JSON, `InvalidRequest` that names the field for wrong types and values.
        """
        try:
            return self._strict.decode(data), ()
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None:
                raise invalid(error, kind=self._lenient.type) from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise _malformed(error) from error
        try:
            body = self._lenient.decode(data)
        except msgspec.ValidationError as error:
            raise invalid(error, kind=self._lenient.type) from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise _malformed(error) from error
        return body, self._unknown_names(data, unknown[1])

    def _unknown_names(self, data: bytes, first: str) -> tuple[str, ...]:
        if len(data) > _NAMES_UP_TO_BYTES:
            return (first,)
        return tuple(name for name in _raw_object.decode(data) if name not in self._known)


class CheckedBodyDecoder(BodyDecoder[T_co]):
    """Decodes bodies of which parts go on as they are: all of it has to be UTF-8, also what nobody reads here."""

    def decode(self, data: bytes) -> tuple[T_co, tuple[str, ...]]:
        """As `BodyDecoder.decode`."""
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _malformed(error) from error
        return super().decode(data)


def _malformed(error: Exception) -> Malformed:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Malformed(f"The body is not valid JSON: {reason}")


def invalid(error: msgspec.ValidationError, within: str = "", kind: Any = Any) -> InvalidRequest:
    """Name the field at fault as clients know it, such as `messages[0].content`; `kind` is the type decoded."""
    text = str(error)
    missing = _MISSING.search(text)
    path = _PATH.search(text)
    param = ".".join(part for part in (within, path[1] if path else "", missing[1] if missing else "") if part) or None
    if missing:
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    reason = text[: path.start()].removesuffix(" - ") if path else text
    refused = _REFUSED.match(reason)
    if refused and (values := supported_values(kind, path[1] if path else "")):
        reason = f"{refused[1][:100]}; supported values: {', '.join(map(repr, values))}"
    return InvalidRequest(f"Invalid value for '{param or 'body'}': {reason}.", param=param)


chat_body: BodyDecoder[ChatBody] = BodyDecoder(ChatBody)
completion_body: BodyDecoder[CompletionBody] = BodyDecoder(CompletionBody)


def decode_prompts(raw: msgspec.Raw) -> list[str] | list[list[int]]:
    """Return the prompts of a completion, all texts or all token ids; raise `InvalidRequest` for any other shape."""
    data = bytes(raw)
    try:
        if data[:1] != b"[":
            return [_text.decode(data)]
        first = data[1:].lstrip()[:1]
        if first == b'"':
            return _texts.decode(data)
        if first == b"[":
            return _token_lists.decode(data)
        return [_token_ids.decode(data)]
    except msgspec.ValidationError as error:
        raise invalid(error, "prompt") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _malformed(error) from error
