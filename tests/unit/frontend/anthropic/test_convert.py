"""Bodies of Anthropic's API become the same chat turn that OpenAI's clients would have sent."""

import json
from typing import Any

import pytest

from bus.errors import InvalidRequest, Malformed
from frontend.anthropic.body import messages_body
from frontend.anthropic.convert import to_chat
from frontend.openai.body import ChatBody, ChatMessage
from frontend.openai.tools import FunctionCall, NamedFunction, NamedTool, ToolCall

ASK: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


def chat_of(**changes: Any) -> ChatBody:
    return to_chat(messages_body.decode(json.dumps({**ASK, **changes}).encode())[0])


def test_hints_go_on() -> None:
    chat = chat_of(busway={"priority": 3}, nvext={"agent_hints": {"osl": 7}})
    assert chat.busway is not None
    assert chat.nvext is not None
    assert chat.busway.priority == 3


def test_plain_text() -> None:
    chat = chat_of(system="Be brief.", stop_sequences=["x"], temperature=0.5, top_k=3, stream=True)
    assert [(m.role, m.content) for m in chat.messages] == [("system", "Be brief."), ("user", "Hi")]
    assert (chat.max_tokens, chat.stop, chat.temperature, chat.top_k, chat.stream) == (9, ["x"], 0.5, 3, True)


def test_the_line_that_changes_with_every_request_is_no_part_of_the_prompt() -> None:
    blocks = [{"type": "text", "text": "x-anthropic-billing-header: cch=1"}, {"type": "text", "text": "Be brief."}]
    assert chat_of(system=blocks).messages[0].content == "Be brief."
    assert [m.role for m in chat_of(system=blocks[:1]).messages] == ["user"]


def test_a_turn_with_thoughts_calls_and_results() -> None:
    chat = chat_of(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Sun?", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "zzz"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "sky", "input": {"at": "Köln"}},
                    {"type": "tool_use", "id": "t2", "name": "sky"},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "clear"}]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "broken", "is_error": True},
                    {"type": "text", "text": "So?"},
                ],
            },
        ]
    )
    assert chat.messages[1] == ChatMessage(
        role="assistant",
        content="I look.",
        reasoning_content="Hm.",
        tool_calls=[
            ToolCall(id="t1", function=FunctionCall("sky", '{"at": "K\\u00f6ln"}')),
            ToolCall(id="t2", function=FunctionCall("sky", "{}")),
        ],
    )
    results = [(m.role, m.tool_call_id, m.content) for m in chat.messages[2:]]
    assert results == [("tool", "t1", "clear"), ("tool", "t2", "Error: broken"), ("user", None, "So?")]


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "sky"}, NamedTool(NamedFunction("sky"))),
    ],
)
def test_choices_of_a_tool(given: dict[str, Any], choice: Any) -> None:
    tools = [{"name": "sky", "input_schema": {"type": "object"}}]
    chat = chat_of(tools=tools, tool_choice={**given, "disable_parallel_tool_use": True})
    assert (chat.tool_choice, chat.parallel_tool_calls) == (choice, False)
    assert chat.tools is not None
    assert bytes(chat.tools[0].function.parameters) == b'{"type": "object"}'


def test_documents_and_search_results_are_text() -> None:
    text = {"type": "text", "text": "Rain."}
    found = {"type": "search_result", "source": "https://x", "title": "Sky", "content": [text], "citations": {}}
    document: dict[str, Any] = {"type": "document", "title": "Report", "context": "Of today", "source": {}}
    plain = {**document, "source": {"type": "text", "media_type": "text/plain", "data": "Sun."}}
    parts = {"type": "document", "source": {"type": "content", "content": [text, text]}}
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "sky", "input": {}}]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [found, text]}
    turns = [{"role": "user", "content": [plain, found, parts, text]}, use, {"role": "user", "content": [result]}]
    told = "Sky\nhttps://x\nRain."
    messages = chat_of(messages=turns).messages
    assert messages[0].content == f"Report\nOf today\nSun.\n{told}\nRain.\nRain.\nRain."
    assert messages[2].content == f"{told}\nRain."
    for source in (
        {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
        {"type": "file", "file_id": "f"},
    ):
        for block in ({**document, "source": source}, {**result, "content": [{**document, "source": source}]}):
            with pytest.raises(InvalidRequest, match=f"'document' whose source is '{source['type']}'"):
                chat_of(messages=[{"role": "user", "content": [block]}])
    with pytest.raises(InvalidRequest, match="'search_result' cannot stand in a message of role 'assistant'"):
        chat_of(messages=[{"role": "assistant", "content": [found]}, {"role": "user", "content": "So?"}])


def test_thinking_is_asked_of_templates_under_both_names() -> None:
    assert chat_of(thinking={"type": "enabled", "budget_tokens": 1024}).chat_template_kwargs == {
        "enable_thinking": True,
        "thinking": True,
    }
    assert chat_of(thinking={"type": "disabled"}).chat_template_kwargs == {"enable_thinking": False, "thinking": False}
    assert chat_of().chat_template_kwargs is None


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"max_tokens": None},
        {"temperature": 1.5},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "t", "name": "n"}]}]},
        {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "I"}]},
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": [1]}]},
                {"role": "user", "content": "x"},
            ]
        },
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t"}]}] * 2},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"tools": [{"name": ""}]},
        {"tool_choice": {"type": "tool"}},
        {"tool_choice": {"type": "some"}},
        {"stop_sequences": [""]},
        {"system": [{"type": "image"}]},
        {"thinking": "yes"},
    ],
)
def test_what_cannot_be_served_is_an_invalid_request(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        chat_of(**changes)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"model":"m"',
        b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"b",'
        b'"input":{"x":"\xff"}}]},{"role":"user","content":"x"}]}',
        b'{"model":"m","max_tokens":1,"messages":' + b"[" * 100_000,
        b'{"model":"m","max_tokens":1,"metadata":' + b'{"a":' * 100_000,
    ],
)
def test_hostile_bytes_are_client_errors(data: bytes) -> None:
    with pytest.raises((InvalidRequest, Malformed)):
        to_chat(messages_body.decode(data)[0])
