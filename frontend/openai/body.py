"""Pure. Request bodies of OpenAI's chat completions and completions, decoded with types and bounds."""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from bus.errors import InvalidRequest, Malformed

_NAMES_UP_TO_BYTES = 256 * 2**10
"""Bodies larger than that get only the first unknown parameter named: listing all would cost memory."""

Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
TokenCount = Annotated[int, Meta(ge=1, le=2**31)]
TokenId = Annotated[int, Meta(ge=0, lt=2**32)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = None


class SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take. Clients send null for what they leave out, so every field takes it."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    max_tokens: TokenCount | None = None
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
    ignore_eos: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=256)] | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """The call inside a tool call of an earlier turn; `arguments` is JSON in a string."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call of an earlier turn."""

    id: str = ""
    type: str = "function"
    function: FunctionCall


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only text is served so far."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"")


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionSpec


Scalar = str | int | float | bool | None


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=512)] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw(b"")
    chat_template_kwargs: Annotated[dict[str, Scalar], Meta(max_length=64)] | None = None


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`; `prompt` is a string or a list of token ids."""

    prompt: msgspec.Raw
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    suffix: str | None = None


class _StrictChat(ChatBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _StrictCompletion(CompletionBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


T = TypeVar("T", bound=SamplingBody)

_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_token_ids: msgspec.json.Decoder[list[int]] = msgspec.json.Decoder(Annotated[list[TokenId], Meta(min_length=1)])
_text = msgspec.json.Decoder(str)
_PATH = re.compile(r"at (?:`key` in )?`\$\.?([^`]*)`\Z")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)


class BodyDecoder(Generic[T]):
    """Decodes one kind of body in one pass, and in a second one only where unknown parameters are to be named."""

    def __init__(self, strict: Any, lenient: type[T]) -> None:
        self._strict: msgspec.json.Decoder[T] = msgspec.json.Decoder(strict)
        self._lenient: msgspec.json.Decoder[T] = msgspec.json.Decoder(lenient)
        self._known = frozenset(field.name for field in msgspec.structs.fields(lenient))

    def decode(self, data: bytes) -> tuple[T, tuple[str, ...]]:
        """Return the body and the names of the parameters in it that are unknown here, and ignored.

        Raises `Malformed` for what is no JSON, `InvalidRequest` that names the field for wrong types and values.
        """
        try:
            return self._strict.decode(data), ()
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None:
                raise invalid(error) from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise _malformed(error) from error
        try:
            body = self._lenient.decode(data)
        except msgspec.ValidationError as error:
            raise invalid(error) from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise _malformed(error) from error
        return body, self._unknown_names(data, unknown[1])

    def _unknown_names(self, data: bytes, first: str) -> tuple[str, ...]:
        if len(data) > _NAMES_UP_TO_BYTES:
            return (first,)
        return tuple(name for name in _raw_object.decode(data) if name not in self._known)


def _malformed(error: Exception) -> Malformed:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Malformed(f"The body is not valid JSON: {reason}")


def invalid(error: msgspec.ValidationError, within: str = "") -> InvalidRequest:
    """Name the field at fault as clients know it, such as `messages[0].content`."""
    text = str(error)
    missing = _MISSING.search(text)
    path = _PATH.search(text)
    param = ".".join(part for part in (within, path[1] if path else "", missing[1] if missing else "") if part) or None
    reason = text[: path.start()].removesuffix(" - ") if path else text
    return InvalidRequest(f"Invalid value for '{param or 'body'}': {reason}.", param=param)


chat_body: BodyDecoder[ChatBody] = BodyDecoder(_StrictChat, ChatBody)
completion_body: BodyDecoder[CompletionBody] = BodyDecoder(_StrictCompletion, CompletionBody)


def decode_prompt(raw: msgspec.Raw) -> str | list[int]:
    """Return the one prompt of a completion, text or token ids; raise `InvalidRequest` for any other shape."""
    data = bytes(raw)
    try:
        if data[:1] != b"[":
            return _text.decode(data)
        if data[1:].lstrip()[:1] in (b'"', b"["):
            raise InvalidRequest(
                "Invalid value for 'prompt': several prompts in one request are not served yet; send one request each.",
                param="prompt",
            )
        return _token_ids.decode(data)
    except msgspec.ValidationError as error:
        raise invalid(error, "prompt") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _malformed(error) from error
