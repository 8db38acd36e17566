"""Pure. Responses and their items in the shapes of OpenAI's API."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from bus.messages.responses import ResponseStatus
from frontend.deltas import ChoiceEnd
from frontend.errors import ErrorBody
from frontend.openai.body import TIER_SHOWN
from frontend.request import Usage
from frontend.responses.body import ResponsesBody, TextConfig, TextFormat
from frontend.responses.tools import Name
from frontend.vocabulary import Vocabulary

ItemStatus = Literal["in_progress", "completed", "incomplete"]

_json = msgspec.json.encode
_tool = msgspec.json.Decoder(dict[str, msgspec.Raw])


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    """Text of the answer."""

    text: str
    logprobs: msgspec.Raw
    annotations: tuple[()] = ()


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    """Text of the thoughts."""

    text: str


class MessageShown(msgspec.Struct, frozen=True, tag="message", kw_only=True):
    """The answer's text."""

    id: str
    status: ItemStatus
    role: str = "assistant"
    content: Sequence[OutputText]


class ReasoningShown(msgspec.Struct, frozen=True, tag="reasoning", kw_only=True):
    """The thoughts before it, in the form that OpenAI has for open models."""

    id: str
    status: ItemStatus
    summary: tuple[()] = ()
    content: Sequence[ReasoningText]
    encrypted_content: None = None


class FunctionCallShown(msgspec.Struct, frozen=True, tag="function_call", kw_only=True):
    """A call of a function."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class CustomCallShown(msgspec.Struct, frozen=True, tag="custom_tool_call", kw_only=True):
    """A call of a custom tool."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    input: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


ItemShown = MessageShown | ReasoningShown | FunctionCallShown | CustomCallShown


class _InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class UsageShown(msgspec.Struct, frozen=True):
    """`usage`."""

    input_tokens: int
    input_tokens_details: _InputDetails
    output_tokens: int
    output_tokens_details: _OutputDetails
    total_tokens: int


class ErrorShown(msgspec.Struct, frozen=True):
    """`error` of a response that failed."""

    code: str
    message: str


class Incomplete(msgspec.Struct, frozen=True):
    """`incomplete_details`."""

    reason: str


class ResponseShown(msgspec.Struct, frozen=True, kw_only=True):
    """A response in any state. What the client asked for is echoed; `temperature` and `top_p` are what held."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool
    error: ErrorShown | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: Sequence[ItemShown] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: msgspec.Raw
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: msgspec.Raw
    tool_choice: msgspec.Raw
    tools: list[msgspec.Raw]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: UsageShown | None = None
    user: str | None


class InputTokens(msgspec.Struct, frozen=True):
    """What a prompt would take."""

    input_tokens: int
    object: str = "response.input_tokens"


class Deleted(msgspec.Struct, frozen=True):
    """A response is gone."""

    id: str
    object: str = "response"
    deleted: bool = True


class Made(NamedTuple):
    """What a response came to, rendered."""

    status: ResponseStatus
    body: bytes


_ID = re.compile(r"resp_([0-9a-f]{32})-([a-z0-9][a-z0-9_-]{0,63})\Z")
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32}-[a-z0-9][a-z0-9_-]{0,63}?)_[0-9]+\Z")


def response_id(request_id: str, frontend: str) -> str:
    """Return the id of a response; it tells which frontend makes it."""
    return f"resp_{request_id}-{frontend}"


def owner_of(response: str) -> str | None:
    """Return the frontend that makes, or made, a response; None for what is no id of a response."""
    match = _ID.match(response)
    return match[2] if match else None


def response_of(item: str) -> str | None:
    """Return the response that an output item belongs to; None for what is no id of one."""
    match = _ITEM_ID.match(item)
    return f"resp_{match[1]}" if match else None


def item_id(prefix: str, response: str, index: int) -> str:
    """Return the id of item `index` of a response."""
    return f"{prefix}_{response.removeprefix('resp_')}_{index}"


def usage_shown(usage: Usage) -> UsageShown:
    """Say in OpenAI's words what a response took."""
    return UsageShown(
        usage.prompt_tokens,
        _InputDetails(usage.cached_tokens),
        usage.output_tokens,
        _OutputDetails(usage.reasoning_tokens),
        usage.prompt_tokens + usage.output_tokens,
    )


def new_response(
    body: ResponsesBody, response: str, created_at: int, model: str, *, temperature: float, top_p: float
) -> ResponseShown:
    """Return a response that has not begun."""
    return ResponseShown(
        id=response,
        created_at=created_at,
        status="queued" if body.background else "in_progress",
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        model=model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=msgspec.Raw(_json(body.reasoning) if body.reasoning else b'{"effort":null,"summary":null}'),
        safety_identifier=body.safety_identifier,
        service_tier=TIER_SHOWN.get(body.service_tier or "", "default"),
        store=body.store is not False,
        temperature=temperature,
        text=_text_shown(body.text),
        tool_choice=body.tool_choice if bytes(body.tool_choice) not in (b"", b"null") else msgspec.Raw(b'"auto"'),
        tools=[_tool_shown(tool) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
    )


def _text_shown(config: TextConfig | None) -> msgspec.Raw:
    """Say in what form the text is; only a schema has a name."""
    asked = config or TextConfig()
    given = asked.format or TextFormat()
    shown: dict[str, object] = {"type": given.type}
    if given.type == "json_schema":
        shown |= {"name": given.name, "schema": given.schema, "strict": given.strict, "description": given.description}
    text: dict[str, object] = {"format": shown}
    if asked.verbosity is not None:
        text["verbosity"] = asked.verbosity
    return msgspec.Raw(_json(text))


def _tool_shown(tool: msgspec.Raw) -> msgspec.Raw:
    """Return a tool as it was asked with; of functions all is said that clients look for."""
    fields = _tool.decode(tool)
    if bytes(fields["type"]) != b'"function"':
        return tool
    return msgspec.Raw(_json({"parameters": None, "strict": None, **fields}))


def ended(
    shown: ResponseShown, items: Sequence[ItemShown], end: ChoiceEnd, usage: UsageShown, completed_at: int
) -> ResponseShown:
    """Return the response as its choice ended."""
    replace = msgspec.structs.replace
    if end.reason == "length":
        return replace(
            shown, status="incomplete", incomplete_details=Incomplete("max_output_tokens"), output=items, usage=usage
        )
    if end.reason == "abort":
        error = ErrorShown("server_error", "The worker ended this response before it was done.")
        return replace(shown, status="failed", error=error, output=items, usage=usage)
    return replace(shown, status="completed", completed_at=completed_at, output=items, usage=usage)


def failed(shown: ResponseShown, error: ErrorBody, items: Sequence[ItemShown] = ()) -> ResponseShown:
    """Return the response as an error ended it."""
    code = "rate_limit_exceeded" if error.type == "rate_limit_error" else "server_error"
    return msgspec.structs.replace(shown, status="failed", error=ErrorShown(code, error.message), output=items)


def with_outcome(response: bytes, status: ResponseStatus, error: ErrorShown | None = None) -> bytes:
    """Return a rendered response with another status and error."""
    fields = msgspec.json.decode(response, type=dict[str, msgspec.Raw])
    return _json({**fields, "status": status, "error": error})


class Terms(NamedTuple):
    """How a response is written, streamed or whole."""

    clock: Callable[[], float]
    """Gives unix seconds."""
    logprobs_of: Vocabulary | None = None
    """None leaves log-probabilities out."""
    names: Mapping[str, Name] = {}
    """As `Offered.names`."""


def is_custom(name: str, names: Mapping[str, Name]) -> bool:
    """Say whether the model was shown a custom tool under that name."""
    return name in names and names[name].is_custom


def as_asked(call: FunctionCallShown, names: Mapping[str, Name]) -> FunctionCallShown | CustomCallShown:
    """Return a call of what the client knows, instead of the function that the model was shown."""
    known = names.get(call.name)
    if known is None:
        return call
    namespace = known.namespace or msgspec.UNSET
    if known.is_custom:
        return CustomCallShown(
            id=call.id,
            status=call.status,
            call_id=call.call_id,
            name=known.name,
            input=call.arguments,
            namespace=namespace,
        )
    return msgspec.structs.replace(call, name=known.name, namespace=namespace)
