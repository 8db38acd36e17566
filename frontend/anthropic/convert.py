"""Pure. From a body of Anthropic's Messages API to the chat turn that all APIs share."""

from collections.abc import Iterable, Sequence

import msgspec

from bus.errors import InvalidRequest
from frontend.anthropic import body as theirs
from frontend.openai.body import ChatBody, ChatMessage, JsonSchema, ResponseFormat, Scalar
from frontend.openai.tools import FunctionCall, FunctionSpec, NamedFunction, NamedTool, Tool, ToolCall, ToolChoice

_VOLATILE = "x-anthropic-billing-header:"
"""Begins a block of the system prompt that a coding agent changes with every request: kept, no prefix would be hit."""

_CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(body: theirs.MessagesBody) -> ChatBody:
    """Return the turn; raise `InvalidRequest` for what is not served."""
    return msgspec.structs.replace(
        prompt_turn(body),
        stream=body.stream,
        max_tokens=body.max_tokens,
        stop=body.stop_sequences,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        busway=body.busway,
        nvext=body.nvext,
    )


def prompt_turn(body: theirs.CountBody) -> ChatBody:
    """Return what of the turn becomes the prompt."""
    if body.messages[-1].role == "assistant":
        raise InvalidRequest(
            "This model does not support assistant message prefill. The conversation must end with a user message.",
            param="messages",
        )
    choice = body.tool_choice
    output = body.output_config or theirs.OutputConfig()
    return ChatBody(
        model=body.model,
        messages=[*_system(body.system), *(turn for message in body.messages for turn in _turns(message))],
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        response_format=_format(output.format),
        reasoning_effort=output.effort,
        chat_template_kwargs=_thinking_options(body.thinking),
    )


def _system(system: str | Sequence[theirs.TextBlock] | None) -> list[ChatMessage]:
    blocks = [system] if isinstance(system, str) else [block.text for block in system or ()]
    text = "\n\n".join(block for block in blocks if block and not block.startswith(_VOLATILE))
    return [ChatMessage(role="system", content=text)] if text else []


def _turns(message: theirs.Message) -> list[ChatMessage]:
    if isinstance(message.content, str):
        return [ChatMessage(role=message.role, content=message.content)]
    if message.role == "assistant":
        return [_assistant(message.content)]
    turns: list[ChatMessage] = []
    texts: list[str] = []
    for block in message.content:
        if isinstance(block, theirs.TextualBlock):
            texts.append(_text(block))
        elif isinstance(block, theirs.ToolResultBlock) and message.role == "user":
            turns.append(ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=_result(block)))
        else:
            raise _misplaced(block, message.role)
    if texts or not turns:
        turns.append(ChatMessage(role=message.role, content=_join(texts)))
    return turns


def _assistant(blocks: Iterable[theirs.Block]) -> ChatMessage:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        if isinstance(block, theirs.TextBlock):
            texts.append(block.text)
        elif isinstance(block, theirs.ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, theirs.ToolUseBlock):
            calls.append(ToolCall(id=block.id, function=FunctionCall(block.name, _arguments(block))))
        elif not isinstance(block, theirs.RedactedThinkingBlock):
            raise _misplaced(block, "assistant")
    return ChatMessage(
        role="assistant",
        content=_join(texts) if texts else None,
        reasoning_content=_join(thoughts) if thoughts else None,
        tool_calls=calls or None,
    )


def _arguments(block: theirs.ToolUseBlock) -> str:
    arguments = bytes(block.input).decode() or "{}"
    if not arguments.startswith("{"):
        raise InvalidRequest(
            f"Invalid value for 'input' of tool_use {block.id[:80]!r}: no JSON object.", param="messages"
        )
    return arguments


def _result(block: theirs.ToolResultBlock) -> str:
    content = block.content or ""
    text = content if isinstance(content, str) else _join([_text(each) for each in content])
    return f"Error: {text}" if block.is_error else text


def _text(block: theirs.TextualBlock) -> str:
    if isinstance(block, theirs.TextBlock):
        return block.text
    if isinstance(block, theirs.SearchResultBlock):
        return _join([block.title, block.source, *(each.text for each in block.content)])
    source = block.source
    if source.type not in ("text", "content"):
        raise InvalidRequest(
            f"Invalid value for 'messages': a 'document' whose source is {source.type[:40]!r} is not served; text is.",
            param="messages",
        )
    content = source.content if isinstance(source.content, str) else _join([each.text for each in source.content])
    return _join([part for part in (block.title, block.context, source.data, content) if part])


def _join(texts: Sequence[str]) -> str:
    return "\n".join(texts)


def _misplaced(block: theirs.Block, role: str) -> InvalidRequest:
    kind = type(block).__struct_config__.tag
    return InvalidRequest(f"A block of type {kind!r} cannot stand in a message of role {role!r}.", param="messages")


def _tool(tool: theirs.Tool) -> Tool:
    if tool.type not in (None, "custom"):
        raise InvalidRequest(
            f"The tool {tool.name!r} of type {(tool.type or '')[:80]!r} runs at Anthropic only; served are tools "
            "that the client runs, with a name and an input_schema.",
            param="tools",
        )
    return Tool(
        function=FunctionSpec(
            name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
        )
    )


def _tool_choice(choice: theirs.ToolChoice) -> ToolChoice:
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if not choice.name:
        raise InvalidRequest("'tool_choice' of type 'tool' needs the tool's 'name'.", param="tool_choice.name")
    return NamedTool(NamedFunction(choice.name))


def _format(wanted: theirs.OutputFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    return ResponseFormat("json_schema", JsonSchema(name="output", schema=wanted.schema, strict=True))


def _thinking_options(thinking: theirs.Thinking | None) -> dict[str, Scalar] | None:
    """Return the variables by which chat templates turn thinking on and off: families differ in the name."""
    if thinking is None or thinking.type not in ("enabled", "disabled"):
        return None
    is_on = thinking.type == "enabled"
    return {"enable_thinking": is_on, "thinking": is_on}
