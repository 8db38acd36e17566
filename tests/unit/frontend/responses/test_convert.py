"""Items of the Responses API become the same chat turn that chat completions would have sent."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import InvalidRequest, Malformed
from frontend.openai.body import ChatBody
from frontend.openai.tools import NamedFunction, NamedTool
from frontend.pages import Page, read_page, read_query
from frontend.responses.answers import item_id, owner_of, response_id, response_of
from frontend.responses.body import responses_body
from frontend.responses.convert import shorten, to_chat, to_messages
from frontend.responses.items import Item, ItemReference, MessageItem, decode_item
from frontend.responses.listing import render_page
from frontend.responses.tools import Name, read_tools

TOOL = {"type": "function", "name": "sky", "parameters": {"type": "object"}, "strict": True}
PATCH = {"type": "custom", "name": "patch", "description": "Change files."}
LARK = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}


def items_of(given: list[Any]) -> list[Item]:
    decoded = [decode_item(msgspec.Raw(json.dumps(each).encode()), number) for number, each in enumerate(given)]
    return [item for item in decoded if not isinstance(item, ItemReference)]


def chat_of(**fields: Any) -> ChatBody:
    body = responses_body.decode(json.dumps({"model": "m", **fields}).encode())[0]
    given = body.input or []
    items = [MessageItem("user", given)] if isinstance(given, str) else items_of([json.loads(bytes(r)) for r in given])
    return to_chat(body, items)


def test_one_turn_of_the_model_is_one_message() -> None:
    messages = to_messages(
        items_of(
            [
                {"role": "user", "content": [{"type": "input_text", "text": "Sun?"}]},
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "Hm"}],
                },
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                {"type": "function_call", "call_id": "c1", "name": "sky", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "sky", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "clear"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So"}]},
                {"role": "assistant", "content": "Mixed."},
            ]
        )
    )
    shown = [(m.role, m.content, m.reasoning_content, len(m.tool_calls or ()), m.tool_call_id) for m in messages]
    assert shown == [
        ("user", "Sun?", None, 0, None),
        ("assistant", "I look.", "Hm", 2, None),
        ("tool", "clear", None, 0, "c1"),
        ("tool", "rain", None, 0, "c2"),
        ("assistant", "Mixed.", "So", 0, None),
    ]


def test_parameters_have_their_names_of_chat_completions() -> None:
    chat = chat_of(
        input="Hi",
        instructions="Be brief.",
        max_output_tokens=5,
        reasoning={"effort": "low"},
        tools=[TOOL],
        tool_choice={"type": "function", "name": "sky"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        include=["message.output_text.logprobs"],
        busway={"session": "s"},
    )
    assert chat.busway is not None
    assert chat.busway.session == "s"
    assert [(m.role, m.content) for m in chat.messages] == [("system", "Be brief."), ("user", "Hi")]
    assert (chat.max_completion_tokens, chat.reasoning_effort, chat.logprobs) == (5, "low", True)
    assert chat.tool_choice == NamedTool(NamedFunction("sky"))
    assert chat.response_format is not None
    assert chat.response_format.json_schema is not None
    assert chat.response_format.json_schema.strict


def test_allowed_tools_are_the_only_ones() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sky"}]}
    chat = chat_of(input="Hi", tools=[TOOL, {**TOOL, "name": "sea"}], tool_choice=allowed)
    assert chat.tool_choice == "required"
    assert [tool.function.name for tool in chat.tools or ()] == ["sky"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "tools": [{"type": "web_search"}, {"type": "file_search"}]}, "tools[1].type"),
        ({"input": "x", "tools": [{**PATCH, "format": {**LARK, "syntax": "yacc"}}]}, "tools[0].format.syntax"),
        ({"input": "x", "tools": [{**PATCH, "name": "a b"}]}, "tools[0].name"),
        ({"input": "x", "tools": [{"type": "local_shell"}]}, "tools[0].type"),
        (
            {"input": "x", "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]},
            "tools[0].tools[0]",
        ),
        ({"input": "x", "tools": [{"type": "namespace", "name": "n", "tools": [TOOL] * 257}]}, "tools[0].tools"),
        ({"input": "x", "tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"input": "x", "tools": ["web_search"]}, "tools[0]"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "metadata": {"k" * 65: "v"}}, "metadata"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
    ],
)
def test_what_cannot_be_served_names_its_parameter(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat_of(**fields)
    assert (refused.value.param or "").startswith(param)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"model":"m","input":"x","tools":[{"type":"function","name":"a","x":"\xff"}]}',
        b'{"model":"m","input":[' + b"[" * 100_000,
        b'{"model":"m","input":[' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"]}",
        b'{"model":"m","input":"\\ud800","metadata":3}',
    ],
)
def test_hostile_bytes_are_client_errors(data: bytes) -> None:
    with pytest.raises((InvalidRequest, Malformed)):  # noqa: PT012 - any step may refuse
        body = responses_body.decode(data)[0]
        assert isinstance(body.input, list)
        to_chat(body, [i for n, r in enumerate(body.input) if not isinstance(i := decode_item(r, n), ItemReference)])


def test_a_conversation_loses_its_older_turns_and_keeps_its_instructions() -> None:
    rules = MessageItem("developer", "rules")
    turns: list[Item] = [rules]
    for number in range(5):
        turns += [MessageItem("user", f"q{number}"), MessageItem("assistant", f"a{number}")]
    once = shorten(turns)
    assert [item.content for item in once if isinstance(item, MessageItem)] == ["rules", "q3", "a3", "q4", "a4"]
    assert shorten(once) == [rules, *turns[-2:]]
    assert shorten(shorten(once)) == shorten(once)


@given(st.text(max_size=80))
def test_ids_of_others_belong_to_nobody(text: str) -> None:
    assert owner_of(text) is None
    assert response_of(text) is None


def test_an_item_tells_its_response_and_that_its_frontend() -> None:
    response = response_id("0123456789abcdef" * 2, "f-12ab_3")
    assert owner_of(response) == "f-12ab_3"
    assert response_of(item_id("msg", response, 12)) == response


def test_pages_of_items() -> None:
    ids = [{"id": "one"}, {}, {"id": None}, {"id": "one"}, {"id": "one"}]
    given = [msgspec.Raw(json.dumps({"role": "user", "content": f"t{n}"} | ids[n]).encode()) for n in range(5)]
    response = response_id("0" * 32, "f-1")
    seen: list[str] = []
    after = ""
    while True:
        page = json.loads(render_page(response, given, Page(2, after, is_newest_first=False)))
        seen += [item["content"][0]["text"] for item in page["data"]]
        after = page["last_id"]
        assert len(seen) <= len(given)
        if not page["has_more"]:
            break
    assert seen == ["t0", "t1", "t2", "t3", "t4"]
    newest = json.loads(render_page(response, given, read_page(read_query(b"limit=1"), default=20, most=100)))
    assert (newest["data"][0]["content"][0]["text"], newest["has_more"]) == ("t4", True)


def test_what_was_said_before_is_listed_as_output() -> None:
    given = [msgspec.Raw(b'{"role":"assistant","content":"Hi"}')]
    page = json.loads(render_page(response_id("0" * 32, "f-1"), given, Page(1)))
    assert page["data"][0]["content"] == [{"type": "output_text", "annotations": [], "text": "Hi"}]


@pytest.mark.parametrize("field", ["id", "type", "role"])
def test_an_item_whose_head_is_no_text_is_refused(field: str) -> None:
    item = {"type": "message", "role": "user", "content": "Hi"} | {field: 5}
    with pytest.raises(InvalidRequest) as refused:
        decode_item(msgspec.Raw(json.dumps(item).encode()), 3)
    assert refused.value.param == f"input[3].{field}"


@pytest.mark.parametrize("query", [b"limit=0", b"limit=101", b"limit=x", b"limit=%C2%B2", b"order=up", b"a=1&" * 40])
def test_pages_that_cannot_be(query: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_page(read_query(query), default=20, most=100)


def test_a_custom_tool_is_shown_as_a_function_of_one_text() -> None:
    called = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'say "hi"\n'}
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
    chat = chat_of(
        input=[{"role": "user", "content": "x"}, called, output],
        tools=[
            PATCH,
            {**PATCH, "name": "sum", "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}},
        ],
        tool_choice={"type": "custom", "name": "patch"},
    )
    assert chat.tool_choice == NamedTool(NamedFunction("patch"))
    shown = [json.loads(bytes(tool.function.parameters)) for tool in chat.tools or ()]
    assert [each["required"] for each in shown] == [["input"]] * 2
    assert [each["properties"]["input"].get("pattern") for each in shown] == [None, "^(?:[0-9]+)$"]
    call = (chat.messages[1].tool_calls or [])[0]
    assert json.loads(call.function.arguments) == {"input": called["input"]}
    assert (chat.messages[2].role, chat.messages[2].tool_call_id, chat.messages[2].content) == ("tool", "c", "done")


def test_functions_of_a_namespace_are_shown_under_its_name_and_extras_are_left_out() -> None:
    space = {"type": "namespace", "name": "agents", "description": "d", "tools": [TOOL]}
    called = {"type": "function_call", "call_id": "c", "name": "sky", "arguments": "{}", "namespace": "agents"}
    asked = chat_of(input=[{"role": "user", "content": "x"}, called], tools=[TOOL, space, {"type": "web_search_2026"}])
    assert [tool.function.name for tool in asked.tools or ()] == ["sky", "agents__sky"]
    assert [call.function.name for call in asked.messages[-1].tool_calls or ()] == ["agents__sky"]
    raws = [msgspec.Raw(json.dumps(each).encode()) for each in (TOOL, space, {"type": "web_search"})]
    offered = read_tools(raws)
    assert offered.names == {"agents__sky": Name("sky", "agents")}
    assert offered.left_out == ("tools[2].web_search",)
