"""Whatever the deltas are, the events of a response count up, open and close its items, and end with what they told."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from frontend.deltas import (
    AnswerFacts,
    CallArguments,
    CallStart,
    Choice,
    ChoiceEnd,
    Delta,
    ParsedCall,
    ReasoningDelta,
    TextDelta,
)
from frontend.errors import ErrorBody
from frontend.request import Usage
from frontend.responses.answers import ResponseShown, Terms, new_response
from frontend.responses.body import responses_body
from frontend.responses.events import ResponsesDialect
from frontend.responses.tools import Name

FACTS = AnswerFacts("ab12", 100, "m", 7)
USAGE = Usage(7, 50, 3, 2)

deltas_of_one_kind = st.one_of(
    st.text(min_size=1, max_size=5).map(lambda text: [TextDelta(text)]),
    st.text(min_size=1, max_size=5).map(lambda text: [ReasoningDelta(text)]),
    st.lists(st.text(max_size=5), max_size=3).map(
        lambda fragments: [CallStart(0, "c", "f"), *(CallArguments(0, fragment) for fragment in fragments)]
    ),
)


def begun(**fields: Any) -> ResponseShown:
    body = responses_body.decode(json.dumps({"model": "m", "input": "x", **fields}).encode())[0]
    return new_response(body, f"resp_{'0' * 32}-f-1", 100, "m", temperature=0.5, top_p=1.0)


def dialect() -> ResponsesDialect:
    return ResponsesDialect(begun(), Terms(lambda: 101.5))


def read(body: bytes) -> list[Any]:
    *events, end = body.decode().split("\n\n")
    assert not end
    data = [json.loads(event.split("\ndata: ")[1]) for event in events]
    assert [event.split("\n")[0] for event in events] == [f"event: {each['type']}" for each in data]
    assert [each["sequence_number"] for each in data] == list(range(len(data)))
    return data


def write(flushes: Sequence[Sequence[Delta]], end: ChoiceEnd) -> tuple[list[Any], ResponsesDialect]:
    made = dialect()
    chunks = made.chunks(FACTS, 0)
    out = chunks.opening()
    for flush in flushes:
        out += chunks.deltas(flush, ())
    return read(out + chunks.closing(end, USAGE)), made


@given(st.lists(deltas_of_one_kind, max_size=8), st.sampled_from(["stop", "length", "tool_calls"]))
def test_items_are_opened_filled_and_closed_one_after_the_other(flushes: list[list[Delta]], reason: Any) -> None:
    events, made = write(flushes, ChoiceEnd(reason))
    last = events[-1]
    assert last["type"] == ("response.incomplete" if reason == "length" else "response.completed")
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["id"] for item in done] == added
    assert done == last["response"]["output"]
    for item in done:
        told = "".join(event["delta"] for event in events if event.get("item_id") == item["id"] and "delta" in event)
        assert told == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    said = "".join(getattr(d, "text", getattr(d, "fragment", "")) for flush in flushes for d in flush)
    assert said == "".join(event.get("delta", "") for event in events)
    assert made.made is not None
    assert json.loads(made.made.body) == last["response"]


def test_a_stream_and_a_whole_answer_come_to_the_same() -> None:
    end = ChoiceEnd("stop")
    events, _ = write([[ReasoningDelta("Hm")], [TextDelta("Hi "), TextDelta("you")]], end)
    whole = json.loads(dialect().whole(FACTS).render([Choice(0, "Hi you", "Hm", (), (), end)], USAGE))
    assert whole == events[-1]["response"]
    assert whole["completed_at"] == 101
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def test_what_was_asked_for_is_echoed() -> None:
    tools: list[dict[str, Any]] = [{"type": "function", "name": "f", "parameters": {}, "strict": None}]
    shown = begun(tools=tools, tool_choice="required", metadata={"a": "b"}, text={"format": {"type": "json_object"}})
    assert json.loads(bytes(shown.tools[0])) == tools[0]
    assert (bytes(shown.tool_choice), shown.metadata, shown.store) == (b'"required"', {"a": "b"}, True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ErrorBody("why", "server_error", None, "no_worker"), "server_error"),
        (ErrorBody("why", "rate_limit_error", None, "queue_full"), "rate_limit_exceeded"),
    ],
)
def test_a_broken_stream_ends_with_a_response_that_failed(error: ErrorBody, code: str) -> None:
    chunks = dialect().chunks(FACTS, 0)
    out = chunks.opening() + chunks.deltas([TextDelta("Hi")], ()) + chunks.broken(error)
    last = read(out)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": code, "message": "why"}
    assert last["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, {"format": {"type": "text"}}),
        ({"format": {"type": "json_object"}}, {"format": {"type": "json_object"}}),
        ({"verbosity": "low"}, {"format": {"type": "text"}, "verbosity": "low"}),
        (
            {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
            {
                "format": {
                    "type": "json_schema",
                    "name": "n",
                    "schema": {"type": "object"},
                    "strict": True,
                    "description": None,
                }
            },
        ),
    ],
)
def test_the_form_of_the_text_is_echoed(text: Any, shown: dict[str, Any]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(begun(text=text)))["text"] == shown


def test_a_call_bears_the_name_that_the_client_gave_the_function() -> None:
    names = {"agents__sky": Name("sky", "agents")}
    spoken = ResponsesDialect(begun(), Terms(lambda: 101.5, names=names))
    chunks = spoken.chunks(FACTS, 0)
    body = chunks.opening() + chunks.deltas([CallStart(0, "c", "agents__sky"), CallArguments(0, "{}")], [])
    items = [event["item"] for event in read(body + chunks.closing(ChoiceEnd("tool_calls"), USAGE)) if "item" in event]
    assert [(item["name"], item["namespace"]) for item in items] == [("sky", "agents")] * 2
    assert spoken.made is not None
    assert msgspec.json.decode(spoken.made.body)["output"][0] == items[-1]


@pytest.mark.parametrize(
    "told",
    [['say "h', 'i"\n'], ['{"a":', "1}"], []],
)
def test_a_call_of_a_custom_tool_tells_its_input_as_text(told: list[str]) -> None:
    names = {"patch": Name("patch", is_custom=True)}
    streamed, spoken = (ResponsesDialect(begun(), Terms(lambda: 101.5, names=names)) for _ in range(2))
    chunks = streamed.chunks(FACTS, 0)
    deltas: list[Delta] = [CallStart(0, "c", "patch"), *(CallArguments(0, fragment) for fragment in told)]
    end = ChoiceEnd("tool_calls")
    events = read(chunks.opening() + chunks.deltas(deltas, []) + chunks.closing(end, USAGE))
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)
    kind = "response.custom_tool_call_input"
    assert [event["delta"] for event in events if event["type"] == f"{kind}.delta"] == told
    assert [event["input"] for event in events if event["type"] == f"{kind}.done"] == ["".join(told)]
    item = events[-1]["response"]["output"][0]
    shown = (item["type"], item["status"], item["name"], item["call_id"], item["input"])
    assert shown == ("custom_tool_call", "completed", "patch", "c", "".join(told))
    call = ParsedCall("c", "patch", "".join(told))
    whole = json.loads(spoken.whole(FACTS).render([Choice(0, "", "", (call,), (), end)], USAGE))
    assert whole == events[-1]["response"]


def test_a_stream_goes_on_behind_an_opening_that_was_told_before() -> None:
    spoken = dialect()
    told = spoken.opening()
    chunks = spoken.chunks(FACTS, 0)
    assert not chunks.opening()
    events = read(told + chunks.deltas([TextDelta("Hi")], []) + chunks.closing(ChoiceEnd("stop"), USAGE))
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
