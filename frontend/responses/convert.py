"""Pure. From a body of the Responses API and the items before it to the chat turn that all APIs share."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from bus.errors import InvalidRequest
from frontend.openai.body import ChatBody, ChatMessage, JsonSchema, ResponseFormat, invalid
from frontend.openai.tools import CustomCall, FunctionCall, NamedFunction, NamedTool, ToolCall, ToolChoice
from frontend.responses.body import PromptBody, ResponsesBody, TextFormat
from frontend.responses.items import (
    CustomCallItem,
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    text_of,
)
from frontend.responses.tools import model_name, read_tools

LOGPROBS = "message.output_text.logprobs"
"""What `include` says for log-probabilities."""


class _Named(msgspec.Struct, frozen=True, tag="function"):
    name: str


class _NamedCustom(msgspec.Struct, frozen=True, tag="custom"):
    name: str


class _AllowedTool(msgspec.Struct, frozen=True):
    name: str
    type: Literal["function", "custom"] = "function"


class _Allowed(msgspec.Struct, frozen=True, tag="allowed_tools"):
    tools: list[_AllowedTool]
    mode: Literal["auto", "required"] = "auto"


_Choice = Literal["none", "auto", "required"] | _Named | _NamedCustom | _Allowed | None
_choice: msgspec.json.Decoder[_Choice] = msgspec.json.Decoder(_Choice)


def to_chat(body: ResponsesBody, items: Sequence[Item]) -> ChatBody:
    """Return the turn; `items` is the whole conversation. Raises `InvalidRequest` for what is not served."""
    wants_logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    return msgspec.structs.replace(
        prompt_turn(body, items),
        stream=body.stream,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=wants_logprobs or None,
        top_logprobs=body.top_logprobs if wants_logprobs else None,
        prompt_cache_key=body.prompt_cache_key,
        service_tier=body.service_tier,
        busway=body.busway,
        nvext=body.nvext,
    )


def prompt_turn(body: PromptBody, items: Sequence[Item]) -> ChatBody:
    """Return what of the turn becomes the prompt."""
    for name, value in (("conversation", body.conversation), ("prompt", body.prompt)):
        if bytes(value) not in (b"", b"null"):
            raise InvalidRequest(
                f"'{name}' is not served: send 'input', and 'previous_response_id' to go on from a stored response.",
                param=name,
            )
    messages = to_messages(items)
    if body.instructions:
        messages.insert(0, ChatMessage(role="system", content=body.instructions))
    if not messages:
        raise InvalidRequest("There is nothing to answer: send 'input'.", param="input")
    tools = read_tools(body.tools or ()).tools
    choice = _tool_choice(body.tool_choice)
    if isinstance(choice, _Allowed):
        names = {each.name for each in choice.tools}
        tools = [tool for tool in tools if tool.function.name in names]
    return ChatBody(
        model=body.model,
        messages=messages,
        tools=tools or None,
        tool_choice=choice.mode if isinstance(choice, _Allowed) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text.format if body.text else None),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
    )


def to_messages(items: Iterable[Item]) -> list[ChatMessage]:
    """Return the turns of a conversation: thoughts, text and calls of the model in a row are one turn."""
    messages: list[ChatMessage] = []
    turn = _AssistantTurn()
    for item in items:
        if isinstance(item, MessageItem) and item.role == "assistant":
            turn.texts.append(text_of(item.content))
        elif isinstance(item, FunctionCallItem | CustomCallItem):
            name = model_name(item.name, item.namespace)
            if isinstance(item, CustomCallItem):
                turn.calls.append(ToolCall(id=item.call_id, custom=CustomCall(name, item.input)))
            else:
                turn.calls.append(ToolCall(id=item.call_id, function=FunctionCall(name, item.arguments)))
        elif isinstance(item, ReasoningItem):
            # Thoughts begin a turn; those that follow calls begin the next one.
            if turn.texts or turn.calls:
                messages += turn.take()
            turn.thoughts.append(text_of(item.content or item.summary or ""))
        else:
            messages += turn.take()
            if isinstance(item, FunctionOutputItem):
                messages.append(ChatMessage(role="tool", tool_call_id=item.call_id, content=text_of(item.output)))
            else:
                messages.append(ChatMessage(role=item.role, content=text_of(item.content)))
    return messages + turn.take()


def shorten(items: Sequence[Item]) -> list[Item]:
    """Return a conversation without the older half of its turns; its instructions stay. The last turn alone stays too.

    A turn begins with a user's message, so that no call loses its output.
    """
    starts = [at for at, item in enumerate(items) if isinstance(item, MessageItem) and item.role == "user"]
    cut = starts[(len(starts) + 1) // 2] if len(starts) > 1 else 0
    kept = [item for item in items[:cut] if isinstance(item, MessageItem) and item.role in ("system", "developer")]
    return [*kept, *items[cut:]]


class _AssistantTurn:
    """Collects the items of one turn of the model."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[ToolCall] = []

    def take(self) -> list[ChatMessage]:
        """Return the turn, if there is any, and begin the next one."""
        texts, thoughts, calls = self.texts, self.thoughts, self.calls
        self.texts, self.thoughts, self.calls = [], [], []
        if not (texts or calls):
            return []
        return [
            ChatMessage(
                role="assistant",
                content="\n".join(texts) if texts else None,
                reasoning_content="\n".join(thoughts) if any(thoughts) else None,
                tool_calls=calls or None,
            )
        ]


def _tool_choice(raw: msgspec.Raw) -> ToolChoice | _Allowed | None:
    if not bytes(raw):
        return None
    try:
        choice = _choice.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error, "tool_choice", _choice.type) from error
    return NamedTool(NamedFunction(choice.name)) if isinstance(choice, _Named | _NamedCustom) else choice


def _format(wanted: TextFormat | None) -> ResponseFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ResponseFormat("json_object")
    if not bytes(wanted.schema):
        raise InvalidRequest("Missing required parameter: 'text.format.schema'.", param="text.format.schema")
    return ResponseFormat("json_schema", JsonSchema(wanted.name, wanted.schema, wanted.strict, wanted.description))
