"""Pure. Conversations as chat templates get them, and some of each shape to try a template with."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Context = Mapping[str, Any]
"""Variables of one rendering: plain values, as JSON has them."""
Message = Mapping[str, Any]
"""One turn, as templates take it."""

_CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say <what> the 'weather' & \"sky\" are",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1.5, "nullable": True}},
            "required": ["city"],
        },
    },
}
_TALK = [
    {"role": "user", "content": " Hello <b>\n  “world” 'n' \\ it's {{ fine }} \n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.\n"},
    {"role": "user", "content": ""},
]
_SYSTEM = {"role": "system", "content": "Be brief.\n"}
TOOL_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Sun?"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "content": '{"sky": "clear"}', "tool_call_id": "abcdef123", "name": "weather"},
]


def probes(special_tokens: Mapping[str, str]) -> list[Context]:
    """Return conversations of the shapes that templates treat differently."""
    talks: list[tuple[list[Any], list[Any] | None]] = [
        ([_TALK[0]], None),
        ([_SYSTEM, *_TALK], None),
        (_TALK, [TOOL]),
        ([_SYSTEM, *_TALK[:1]], [TOOL, TOOL]),
        (TOOL_TALK, [TOOL]),
        ([_SYSTEM, *TOOL_TALK, {"role": "assistant", "content": "It is clear.", "reasoning_content": "so"}], None),
        ([{"role": "developer", "content": "x"}, *_TALK[:2]], None),
        ([_SYSTEM], None),
    ]
    talks += [([form(turn) for turn in messages], tools) for form in TURN_FORMS[1:] for messages, tools in talks[4:6]]
    return [
        context_of(special_tokens, extra, messages, tools)
        for messages, tools in talks
        for extra in ({}, {"enable_thinking": False})
    ]


def context_of(
    special_tokens: Context, extra: Context, messages: Sequence[Message], tools: Sequence[Message] | None
) -> Context:
    """Return the variables of a rendering that leaves the assistant's turn open, unless `extra` says otherwise."""
    return {
        **special_tokens,
        **extra,
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": extra.get("add_generation_prompt", True),
    }


def as_it_is(turn: Message) -> Message:
    """Return the turn unchanged."""
    return turn


def _without_none(turn: Message) -> Message:
    return {**turn, "content": turn.get("content") or ""}


def _with_argument_text(turn: Message) -> Message:
    """Return the turn with its calls' arguments as JSON text."""
    calls = turn.get("tool_calls") or ()
    return {**turn, "tool_calls": [{**call, "function": _with_text(call["function"])} for call in calls]}


def _with_text(function: Context) -> Context:
    arguments = function["arguments"]
    return {
        **function,
        "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
    }


TURN_FORMS: tuple[Callable[[Message], Message], ...] = (
    as_it_is,
    _without_none,
    _with_argument_text,
    lambda turn: _without_none(_with_argument_text(turn)),
)
"""A turn with tool calls, in each form that templates were seen to want; the first that renders is taken."""
