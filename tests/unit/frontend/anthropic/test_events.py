"""Whatever the deltas are, and however they come, the blocks of a message hold them, in order and one at a time."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.anthropic.errors import to_anthropic
from frontend.anthropic.events import AnthropicDialect, MessageChunks
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
from frontend.errors import ErrorAnswer, ErrorBody
from frontend.request import Usage

FACTS = AnswerFacts("ab12", 100, 'the "model"', 7)
END = ChoiceEnd("stop")
USAGE = Usage(7, 5, 3, 2)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
parts = st.lists(
    st.one_of(
        st.builds(TextDelta, texts),
        st.builds(ReasoningDelta, texts),
        st.lists(texts, max_size=3).map(lambda fragments: ("call", fragments)),
    ),
    max_size=8,
)


def flatten(given: Sequence[Any]) -> list[Delta]:
    """Number the calls and lay out their fragments."""
    deltas: list[Delta] = []
    num_calls = 0
    for each in given:
        if isinstance(each, (TextDelta, ReasoningDelta)):
            deltas.append(each)
            continue
        deltas.append(CallStart(num_calls, f"id{num_calls}", "f"))
        deltas += [CallArguments(num_calls, fragment) for fragment in each[1]]
        num_calls += 1
    return deltas


def expected(deltas: Sequence[Delta]) -> list[tuple[str, str]]:
    """Return the blocks: neighbours of one kind are one."""
    blocks: list[tuple[str, str]] = []
    for delta in deltas:
        if isinstance(delta, CallStart):
            blocks.append(("tool_use", ""))
            continue
        kind, text = {
            TextDelta: lambda d: ("text", d.text),
            ReasoningDelta: lambda d: ("thinking", d.text),
            CallArguments: lambda d: ("tool_use", d.fragment),
        }[type(delta)](delta)
        if blocks and blocks[-1][0] == kind:
            blocks[-1] = (kind, blocks[-1][1] + text)
        else:
            blocks.append((kind, text))
    return blocks or [("text", "")]


def read(body: bytes) -> list[Any]:
    *events, end = body.decode().split("\n\n")
    assert not end
    data = [json.loads(event.split("\ndata: ")[1]) for event in events]
    assert [event.split("\n")[0] for event in events] == [f"event: {each['type']}" for each in data]
    return data


def assemble(events: Sequence[Any]) -> list[tuple[str, str]]:
    """Return the blocks that a client puts together; fail on an event that is out of order."""
    blocks: list[tuple[str, str]] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append((event["content_block"]["type"], ""))
            is_open = True
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(blocks) - 1
            kind, text = blocks[-1]
            delta = event["delta"]
            field = {
                "text_delta": "text",
                "thinking_delta": "thinking",
                "input_json_delta": "partial_json",
                "signature_delta": "",
            }[delta["type"]]
            blocks[-1] = (kind, text + (delta[field] if field else ""))
        elif event["type"] == "content_block_stop":
            assert is_open
            is_open = False
    assert not is_open
    return blocks


@given(parts, st.lists(st.integers(0, 30), max_size=4))
def test_blocks_hold_what_was_said_however_it_is_cut(given: list[Any], cuts: list[int]) -> None:
    deltas = flatten(given)
    chunks = MessageChunks(FACTS)
    out = chunks.opening()
    edges = sorted({0, len(deltas), *(cut % (len(deltas) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        out += chunks.deltas(deltas[start:end], ())
    events = read(out + chunks.closing(END, USAGE))
    assert assemble(events) == expected(deltas)
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert events[0]["message"]["usage"]["input_tokens"] == 7
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[-2]["usage"] == {
        "input_tokens": 4,
        "output_tokens": 5,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "output_tokens_details": {"thinking_tokens": 2},
        "server_tool_use": None,
    }


def test_the_cheap_path_writes_the_same_bytes() -> None:
    plain, text = AnthropicDialect().chunks(FACTS, 0), AnthropicDialect().text_chunks(FACTS, 0)
    careful = plain.opening() + plain.deltas([TextDelta("a"), TextDelta("b")], ()) + plain.closing(END, USAGE)
    cheap = text.opening() + text.head + b"a" + text.tail + text.head + b"b" + text.tail + text.closing(END, USAGE)
    assert cheap == careful


def test_a_whole_message_has_the_same_blocks() -> None:
    calls = (ParsedCall("c1", "f", '{"a": "é"}'), ParsedCall("c2", "f", '{"cut": '))
    choice = Choice(0, "Hi", "Hm", calls, (), ChoiceEnd("tool_calls"))
    message = json.loads(AnthropicDialect().whole(FACTS).render([choice], USAGE))
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["input"] for block in message["content"][2:]] == [{"a": "é"}, {}]
    empty = Choice(0, "", "", (), (), END)
    assert json.loads(AnthropicDialect().whole(FACTS).render([empty], USAGE))["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("end", "stop_reason", "stop_sequence"),
    [
        (ChoiceEnd("stop"), "end_turn", None),
        (ChoiceEnd("stop", "END"), "stop_sequence", "END"),
        (ChoiceEnd("length"), "max_tokens", None),
        (ChoiceEnd("tool_calls"), "tool_use", None),
    ],
)
def test_reasons_to_stop(end: ChoiceEnd, stop_reason: str, stop_sequence: str | None) -> None:
    stop = read(MessageChunks(FACTS).closing(end, USAGE))[-2]["delta"]
    assert (stop["stop_reason"], stop["stop_sequence"]) == (stop_reason, stop_sequence)


@pytest.mark.parametrize(
    ("status", "shown", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (403, 403, "permission_error"),
        (404, 404, "not_found_error"),
        (405, 405, "invalid_request_error"),
        (413, 413, "request_too_large"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (503, 529, "overloaded_error"),
    ],
)
def test_types_of_errors(status: int, shown: int, kind: str) -> None:
    answer = to_anthropic(ErrorAnswer(status, ErrorBody("why", "x", None, "y"), 1))
    assert (answer.status, answer.error.type, answer.retry_after_s) == (shown, kind, 1)


def test_a_broken_stream_says_so_in_its_last_event() -> None:
    broken = MessageChunks(FACTS).broken(ErrorBody("why", "server_error", None, "no_worker"))
    error = {"type": "overloaded_error", "message": "why"}
    assert read(broken) == [{"type": "error", "error": error, "request_id": "ab12"}]
