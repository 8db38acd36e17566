"""What clients read: chunks that join to the text, whole answers, log-probabilities, in the shapes of OpenAI."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bus.errors import BuswayError, NoWorker
from bus.messages.inference import Sampling, Stopping, TokenLogprobs
from frontend.deltas import AnswerFacts, Choice, ChoiceEnd
from frontend.doors.ask_answers import AskAnswer, AskDialect
from frontend.model import ServedModel
from frontend.openai.chunks import ChatDialect, CompletionDialect, StreamShape
from frontend.parsing import parser_for
from frontend.parsing.formats import MINIMAX_M1
from frontend.pieces import Pieces
from frontend.plan import Plan
from frontend.request import Generation, Output, Usage
from frontend.stream import COUNTED_AT_ONCE, Reader
from frontend.vocabulary import Vocabulary
from frontend.whole import READ_AT_ONCE

USAGE = Usage(10, 4, 8)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Wire:
    """A sink that keeps the pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False
        self.error: BuswayError | None = None

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        assert not self.is_closed
        self.pieces.append(head + text + tail)

    def close(self, rest: bytes, last: bytes) -> None:
        assert not self.is_closed
        self.is_closed = True
        self.pieces.append(rest + last)

    def fail(self, error: BuswayError, last: bytes) -> None:
        self.is_closed = True
        self.error = error
        self.pieces.append(last)

    def events(self) -> list[Any]:
        lines = b"".join(self.pieces).decode().split("\n\n")
        assert lines.pop() == ""
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


def generation(stops: Sequence[str] = (), top_logprobs: int | None = None) -> Generation:
    return Generation(
        model="m",
        model_slug="m",
        prompt=b"",
        sampling=Sampling(top_logprobs=top_logprobs),
        stopping=Stopping(max_tokens=100),
        stop_strings=tuple(stops),
    )


FACTS = AnswerFacts("id1", 123, 'm"x', 10)
CHAT, COMPLETION = ChatDialect, CompletionDialect


def open_stream(
    model: ServedModel, of: Generation, dialect: Any = CHAT, include_usage: bool = False
) -> tuple[Wire, Output]:
    wire = Wire()
    logprobs_of = None if of.sampling.top_logprobs is None else model.vocabulary
    shape = StreamShape(include_usage=include_usage, logprobs_of=logprobs_of)
    (output,) = Plan(model=model, generations=[of]).streams(dialect(shape), FACTS, wire)
    return wire, output


@relaxed
@given(
    tokens=st.lists(st.integers(0, 400), max_size=20),
    flushes=st.sets(st.integers(0, 20)),
    stops=st.sampled_from([(), ("never to be seen",)]),
)
def test_chunks_join_to_the_whole_text(
    model: ServedModel, tokens: list[int], flushes: set[int], stops: tuple[str, ...]
) -> None:
    wire, output = open_stream(model, generation(stops), include_usage=True)
    for number, token in enumerate(tokens):
        output.push(token)
        if number in flushes:
            output.flush()
    output.finish("length", USAGE)
    first, *middle, last, usage = wire.events()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(event["choices"][0]["delta"]["content"] for event in middle)
    assert text == model.vocabulary.decode(tokens)
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert all(event["usage"] is None for event in (first, *middle, last))
    assert all(event["choices"][0]["finish_reason"] is None for event in (first, *middle))
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert {(e["id"], e["object"], e["created"], e["model"]) for e in (first, *middle, last, usage)} == {
        ("chatcmpl-id1", "chat.completion.chunk", 123, 'm"x')
    }


def test_completions_stream_text_without_a_role(model: ServedModel, oracle: Tokenizer) -> None:
    wire, output = open_stream(model, generation(), COMPLETION)
    for token in oracle.encode("The bus stops").ids:
        output.push(token)
        output.flush()
    output.finish("stop", USAGE)
    events = wire.events()
    assert "".join(event["choices"][0]["text"] for event in events) == "The bus stops"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(event["object"] == "text_completion" for event in events)
    assert "usage" not in events[0]


@relaxed
@given(flushes=st.sets(st.integers(0, 40)))
def test_a_stop_string_across_tokens_ends_the_stream_before_it(
    model: ServedModel, oracle: Tokenizer, flushes: set[int]
) -> None:
    wire, output = open_stream(model, generation(["dog. It's"]))
    wants_no_more = []
    for number, token in enumerate(oracle.encode("The lazy dog. It's what").ids):
        output.push(token)
        if number in flushes:
            wants_no_more.append(output.flush())
    assert output.flush()
    assert wants_no_more == sorted(wants_no_more)
    output.finish("length", USAGE)
    events = wire.events()
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "The lazy "
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def told(offset: int) -> TokenLogprobs:
    return TokenLogprobs(1, offset, -0.25 * offset, [5, 70_000], [-0.5, float("-inf")])


@pytest.mark.parametrize("shape", [CHAT, COMPLETION])
def test_log_probabilities_come_with_their_text(model: ServedModel, oracle: Tokenizer, shape: Any) -> None:
    text = "dog 😀 goes STOP x"
    tokens = oracle.encode(text).ids
    wire, output = open_stream(model, generation(["STOP"], 2), shape)
    for offset, token in enumerate(tokens):
        output.push(token)
        output.push_logprobs(told(offset))
        output.flush()
    output.finish("stop", USAGE)
    found = [event["choices"][0]["logprobs"] for event in wire.events() if event["choices"][0]["logprobs"]]
    if shape is CHAT:
        entries = [entry for logprobs in found for entry in logprobs["content"]]
        shown = b"".join(bytes(entry["bytes"]) for entry in entries)
        assert [entry["logprob"] for entry in entries] == [-0.25 * number for number in range(len(entries))]
        assert entries[0]["top_logprobs"][1] == {"token": "", "logprob": -9999.0, "bytes": []}
    else:
        offsets = [offset for logprobs in found for offset in logprobs["text_offset"]]
        shown = "".join(piece for logprobs in found for piece in logprobs["tokens"]).encode()
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
        assert all(len(each["tokens"]) == len(each["token_logprobs"]) == len(each["top_logprobs"]) for each in found)
        return
    assert shown.decode() == "dog 😀 goes "


@pytest.mark.parametrize("stops", [(), ("zzz",), ("fox",)])
def test_whole_answers(model: ServedModel, oracle: Tokenizer, stops: tuple[str, ...]) -> None:
    wire = Wire()
    (output,) = Plan(model=model, generations=[generation(stops)]).answers(ChatDialect(StreamShape()), FACTS, wire)
    tokens = oracle.encode("The quick brown fox").ids
    stopped = False
    for token in tokens:
        output.push(token)
        stopped = output.flush()
    output.finish("length", USAGE)
    answer = json.loads(wire.pieces[-1])
    assert stopped == (stops == ("fox",))
    assert answer["choices"][0]["message"]["content"] == ("The quick brown " if stopped else "The quick brown fox")
    assert answer["choices"][0]["finish_reason"] == ("stop" if stopped else "length")
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["total_tokens"] == 14


@settings(max_examples=10, deadline=None)
@given(num_words=st.integers(0, 6000), cuts=st.lists(st.integers(0, 40_000), max_size=8), blank=st.sampled_from(" -"))
def test_long_thoughts_are_counted_on_the_way_and_the_same_however_they_come(
    num_words: int, cuts: list[int], blank: str
) -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    thoughts = blank.join(f"word{number}" for number in range(num_words))
    text = f"<think>{thoughts}</think>Yes."
    found = []
    for places in ([], cuts):
        edges = [0, *sorted(cut % (len(text) + 1) for cut in places), len(text)]
        counted.clear()
        new_parser = parser_for(MINIMAX_M1, "", (), lambda count: "x" * count)
        assert new_parser is not None
        reader = Reader(Pieces(Vocabulary({}, ())), new_parser(), count)
        for start, end in itertools.pairwise(edges):
            reader.read(text[start:end])
        reader.read_end("")
        assert reader.count(Usage(1, 10**6, 0)).reasoning_tokens == len(thoughts)
        assert "".join(counted) == thoughts
        assert max(map(len, counted), default=0) <= COUNTED_AT_ONCE
        found.append(list(counted))
    assert found[0] == found[1]


def test_a_long_whole_answer_is_read_on_the_way(model: ServedModel, oracle: Tokenizer) -> None:
    wire = Wire()
    plan = Plan(model=model, generations=[generation(("zzz",), top_logprobs=0)])
    (output,) = plan.answers(ChatDialect(StreamShape(logprobs_of=model.vocabulary)), FACTS, wire)
    text = "The quick brown fox 😀, " * 400
    tokens = oracle.encode(text).ids
    assert len(tokens) > 2 * READ_AT_ONCE
    for offset, token in enumerate(tokens):
        output.push(token)
        output.push_logprobs(TokenLogprobs(1, offset, -float(offset), [], []))
        assert not output.flush()
    output.finish("stop", USAGE)
    choice = json.loads(wire.pieces[-1])["choices"][0]
    assert choice["message"]["content"] == text
    assert [each["logprob"] for each in choice["logprobs"]["content"]] == [-float(at) for at in range(len(tokens))]


def test_an_answer_without_text_still_has_role_and_reason(model: ServedModel) -> None:
    for stops in ((), ("x",)):
        wire, output = open_stream(model, generation(stops))
        output.finish("stop", USAGE)
        first, last = wire.events()
        assert first["choices"][0]["delta"]["role"] == "assistant"
        assert last["choices"][0]["finish_reason"] == "stop"


def test_a_failure_ends_the_stream_with_an_error_event(model: ServedModel) -> None:
    wire, output = open_stream(model, generation())
    output.push(5)
    output.fail(NoWorker("gone"))
    event = json.loads(wire.pieces[-1].decode().removeprefix("data: "))
    assert event["error"]["code"] == "no_worker"


def test_the_nats_door_answers_in_small_messages(model: ServedModel, oracle: Tokenizer) -> None:
    wire = Wire()
    (output,) = Plan(model=model, generations=[generation()]).streams(AskDialect(), FACTS, wire)
    for token in oracle.encode('"quoted" text').ids:
        output.push(token)
        output.flush()
    output.finish("stop", USAGE)
    *pieces, end = [json.loads(piece) for piece in wire.pieces]
    assert "".join(piece["text"] for piece in pieces) == '"quoted" text'
    assert (end["done"], end["finish_reason"], end["usage"]["completion_tokens"]) == (True, "stop", 4)
    assert "text" not in end
    choice = Choice(0, "hi", "", (), (), ChoiceEnd("stop"))
    whole = json.loads(AskAnswer(FACTS).render([choice], USAGE))
    assert (whole["text"], whole["done"]) == ("hi", True)
