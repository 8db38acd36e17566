"""Several choices, several prompts: they run as requests of their own and are answered as one."""

import json
from typing import Any

import msgspec
import pytest

from bus.errors import BuswayError, InvalidRequest, NoWorker
from bus.messages.inference import PromptLogprobs, TokenLogprobs
from frontend.deltas import AnswerFacts
from frontend.model import ServedModel
from frontend.openai.body import chat_body, completion_body
from frontend.openai.chunks import ChatDialect, CompletionDialect, StreamShape
from frontend.parsing.formats import MINIMAX_M1
from frontend.plan import Plan, make_plan
from frontend.preprocess import Defaults
from frontend.request import Usage

DEFAULTS = Defaults(50, 2**63 - 1, "default")
FACTS = AnswerFacts("id1", 1, "m", 7)


class Wire:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.error: BuswayError | None = None
        self.num_ends = 0

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        assert not self.num_ends
        self.sent.append(head + text + tail)

    def close(self, rest: bytes, last: bytes) -> None:
        self.num_ends += 1
        self.sent.append(rest + last)

    def fail(self, error: BuswayError, last: bytes) -> None:
        self.num_ends += 1
        self.error = error


def chat(model: ServedModel, **fields: Any) -> Plan:
    body = {"messages": [{"role": "user", "content": "Hi"}]} | fields
    return make_plan(chat_body.decode(json.dumps(body).encode())[0], model, DEFAULTS)


def complete(model: ServedModel, **fields: Any) -> Plan:
    return make_plan(completion_body.decode(json.dumps(fields).encode())[0], model, DEFAULTS)


def say(model: ServedModel, plan: Plan, outputs: list[Any], texts: list[str], order: list[int]) -> None:
    for number in order:
        ids = memoryview(model.tokenizer.encode(texts[number], add_special_tokens=False)).cast("I")
        for offset, token in enumerate(ids):
            outputs[number].push(token)
            outputs[number].push_logprobs(TokenLogprobs(1, offset, -1.0 - number, [], []))
            outputs[number].flush()
        usage = Usage(plan.generations[number].num_prompt_tokens, len(ids), 2)
        outputs[number].finish("length" if number else "stop", usage)


def events(wire: Wire) -> list[Any]:
    lines = b"".join(wire.sent).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_choices_have_seeds_of_their_own(model: ServedModel) -> None:
    seeds = [each.sampling.seed for each in chat(model, n=3, seed=7).generations]
    assert seeds == [7, 8, 9]
    assert [each.sampling.seed for each in chat(model, n=2).generations] == [2**63 - 1, 0]


def test_streamed_choices_end_once_with_the_usage_of_all(model: ServedModel) -> None:
    plan = chat(model, n=3)
    wire = Wire()
    outputs = plan.streams(ChatDialect(StreamShape(include_usage=True)), FACTS, wire)
    texts = ["one bus", "two", "three buses"]
    say(model, plan, outputs, texts, [2, 0, 1])
    assert wire.num_ends == 1
    *chunks, last = events(wire)
    said = ["", "", ""]
    reasons = {}
    for chunk in chunks:
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        said[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert said == texts
    assert reasons == {0: "stop", 1: "length", 2: "length"}
    prompt = plan.generations[0].num_prompt_tokens
    assert last["usage"]["prompt_tokens"] == prompt, "the prompt counts once"
    assert last["usage"]["completion_tokens"] == sum(
        len(model.tokenizer.encode(t, add_special_tokens=False)) // 4 for t in texts
    )


def test_whole_choices_come_in_order(model: ServedModel) -> None:
    plan = complete(model, prompt=["ab", "fox"], n=2, echo=True)
    assert [each.prompt for each in plan.generations[::2]] == [each.prompt for each in plan.generations[1::2]]
    wire = Wire()
    dialect = CompletionDialect(StreamShape(), echoes=["ab", "?"], num_choices=2)
    say(model, plan, plan.answers(dialect, FACTS, wire), ["w", "x", "y", "z"], [3, 1, 0, 2])
    answer = json.loads(wire.sent[0])
    assert [choice["text"] for choice in answer["choices"]] == ["abw", "abx", "?y", "?z"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == sum(each.num_prompt_tokens for each in plan.generations[::2])


def test_the_best_are_kept(model: ServedModel) -> None:
    plan = complete(model, prompt=["ab", "cd"], n=1, best_of=3)
    assert (len(plan.generations), plan.per_prompt, plan.num_kept) == (6, 3, 1)
    wire = Wire()
    outputs = plan.answers(CompletionDialect(StreamShape(), num_choices=1), FACTS, wire)
    say(model, plan, outputs, list("uvwxyz"), [5, 4, 3, 2, 1, 0])
    answer = json.loads(wire.sent[0])
    assert [(choice["text"], choice["index"]) for choice in answer["choices"]] == [("u", 0), ("x", 1)]


def test_an_echo_alone_shows_nothing_generated(model: ServedModel) -> None:
    plan = complete(model, prompt="ab", echo=True, max_tokens=0)
    assert plan.generations[0].stopping.max_tokens == 1
    wire = Wire()
    dialect = CompletionDialect(StreamShape(), echoes=["ab"], is_only_echo=True)
    say(model, plan, plan.answers(dialect, FACTS, wire), ["z"], [0])
    answer = json.loads(wire.sent[0])
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("ab", 0)


def test_one_choice_that_fails_fails_all_once(model: ServedModel) -> None:
    for make in ("streams", "answers"):
        plan = chat(model, n=2)
        wire = Wire()
        first, second = getattr(plan, make)(ChatDialect(StreamShape()), FACTS, wire)
        second.fail(NoWorker("gone"))
        first.fail(NoWorker("gone too"))
        first.push(5)
        first.flush()
        first.finish("stop", Usage(1, 1, 0))
        assert (wire.num_ends, str(wire.error)) == (1, "gone")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
    ],
)
def test_what_does_not_fit_together_is_named(model: ServedModel, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(model, **fields)
    assert caught.value.param == param


def test_an_echo_has_the_log_probabilities_of_the_prompt(model: ServedModel) -> None:
    fields = {"prompt": "The 😀 bus", "echo": True, "logprobs": 1, "return_token_ids": True, "n": 2}
    plan = complete(model, **fields)
    ids = memoryview(plan.prompts[0]).cast("I").tolist()
    assert plan.generations[0].prompt_logprobs == 1
    shape = StreamShape(logprobs_of=model.vocabulary, prompts=[ids], continuous_usage=True)
    rows = [-0.5 * at for at in range(1, len(ids))]
    for make in ("answers", "streams"):
        wire = Wire()
        dialect = CompletionDialect(shape, echoes=["The 😀 bus"], num_choices=2)
        outputs = getattr(plan, make)(dialect, FACTS, wire)
        for output in outputs:
            # A second attempt tells again; rows beyond the prompt are nobody's.
            output.push_logprobs(PromptLogprobs(1, 1, rows[:2], [[5], [6]], [[-1.0], [-2.0]]))
            output.push_logprobs(PromptLogprobs(2, 1, rows, [[5]], [[-1.0]]))
            output.push_logprobs(PromptLogprobs(2, 2**40, [0.0]))
        say(model, plan, outputs, [" stops", " goes"], [1, 0])
        if make == "answers":
            choices = json.loads(wire.sent[0])["choices"]
        else:
            choices = [join([each["choices"][0] for each in events(wire)], number) for number in (0, 1)]
        for choice, said in zip(choices, (" stops", " goes"), strict=True):
            told, text = choice["logprobs"], "The 😀 bus" + said
            assert choice["text"] == text
            assert told["token_logprobs"][: len(ids)] == [None, *rows]
            assert told["top_logprobs"][0] is None
            assert told["text_offset"] == sorted(told["text_offset"])
            assert text[told["text_offset"][len(ids)] :] == said
            assert choice["prompt_token_ids"] == ids
            assert model.vocabulary.decode(choice["token_ids"]) == said
            assert len(told["tokens"]) == len(ids) + len(choice["token_ids"])


def join(parts: list[Any], number: int) -> Any:
    """Join the chunks of one completion."""
    mine = [part for part in parts if part["index"] == number]
    told = [part["logprobs"] for part in mine if part["logprobs"]]
    return {
        "text": "".join(part["text"] for part in mine),
        "logprobs": {name: [entry for each in told for entry in each[name]] for name in told[0]},
        "token_ids": [token for part in mine for token in part.get("token_ids", [])],
        "prompt_token_ids": [token for part in mine for token in part.get("prompt_token_ids", [])],
    }


def test_what_was_thought_is_counted_apart(model: ServedModel) -> None:
    thinker = msgspec.structs.replace(model, format=MINIMAX_M1)
    plan = chat(thinker, n=2)
    texts = ["<think>a fox, a hen</think>Yes", "<think>no"]
    thought = sum(map(thinker.count_tokens, ("a fox, a hen", "no")))
    streamed, whole = Wire(), Wire()
    say(thinker, plan, plan.streams(ChatDialect(StreamShape(include_usage=True)), FACTS, streamed), texts, [1, 0])
    say(thinker, plan, plan.answers(ChatDialect(StreamShape()), FACTS, whole), texts, [1, 0])
    answer = json.loads(whole.sent[0])
    assert [choice["message"].get("reasoning") for choice in answer["choices"]] == ["a fox, a hen", "no"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert events(streamed)[-1]["usage"] == answer["usage"]


def test_the_ids_of_a_chat_are_told_beside_its_text(model: ServedModel) -> None:
    plan = chat(model, return_token_ids=True)
    ids = memoryview(plan.prompts[0]).cast("I").tolist()
    wire, whole = Wire(), Wire()
    shape = StreamShape(prompts=[ids])
    say(model, plan, plan.streams(ChatDialect(shape), FACTS, wire), ["The bus"], [0])
    say(model, plan, plan.answers(ChatDialect(shape), FACTS, whole), ["The bus"], [0])
    chunks, answer = events(wire), json.loads(whole.sent[0])
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"] == ids
    told = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])]
    assert told == answer["choices"][0]["token_ids"]
    assert model.vocabulary.decode(told) == "The bus"


def test_a_stop_string_counts_after_the_least_tokens(model: ServedModel) -> None:
    text = "fox fox fox"
    ids = memoryview(model.tokenizer.encode(text, add_special_tokens=False)).cast("I")
    plan = chat(model, stop="fox", min_tokens=len(ids) - 1)
    wire = Wire()
    say(model, plan, plan.answers(ChatDialect(StreamShape()), FACTS, wire), [text], [0])
    assert json.loads(wire.sent[0])["choices"][0]["message"]["content"] == "fox fox "
