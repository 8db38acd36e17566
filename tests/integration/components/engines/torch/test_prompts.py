"""What is told of a prompt itself, against transformers: log-probabilities of its tokens, and its vector."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch.nn.functional import normalize

from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest, PromptRows, Step
from components.engines.torch.engine import TorchEngine

Load = Callable[..., TorchEngine]
LENGTHS = (1, 2, 4, 5, 33, 70)


def prompt(length: int) -> list[int]:
    return [(7 * position + length) % 297 + 2 for position in range(length)]


def ask(key: int, tokens: list[int], **fields: Any) -> EngineRequest:
    stopping = Stopping(max_tokens=3, ignore_eos=True)
    return EngineRequest(key, tokens, [], Sampling(temperature=0.0), stopping, frozenset(), **fields)


def run(engine: TorchEngine, requests: list[EngineRequest]) -> list[Step]:
    for request in requests:
        engine.add(request)
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    return steps


def rows_of(steps: list[Step], key: int) -> list[PromptRows]:
    return [rows for step in steps for rows in step.prompts if rows.key == key]


def test_prompts_are_scored_as_transformers_does(model: Any, load: Load) -> None:
    engine = load()
    asked = [ask(key, prompt(length), prompt_logprobs=2) for key, length in enumerate(LENGTHS)]
    for _ in range(2):  # the second time, all prompts are in the prefix cache
        steps = run(engine, asked)
        for request in asked:
            rows = rows_of(steps, request.key)
            expected = model.logits(request.prompt).log_softmax(-1)
            told = [logprob for each in rows for logprob in each.logprobs]
            wanted = [expected[at, token].item() for at, token in enumerate(request.prompt[1:])]
            assert told == pytest.approx(wanted, abs=2e-3)
            assert [each.start for each in rows][:1] == [1][: len(rows)]
            position = 1
            for each in rows:
                assert each.start == position
                position += len(each.logprobs)
                for ids, at in zip(each.top_ids, range(each.start - 1, position - 1), strict=True):
                    assert ids == expected[at].topk(2).indices.tolist()
            assert position == len(request.prompt)
        first_token = next(number for number, step in enumerate(steps) if len(LENGTHS) - 1 in step.keys)
        last_rows = max(
            number for number, step in enumerate(steps) if any(r.key == len(LENGTHS) - 1 for r in step.prompts)
        )
        assert last_rows <= first_token


def test_preempted_prompts_are_told_of_once(load: Load) -> None:
    engine = load(kv_cache_bytes=24 * 2**11)
    asked = [
        msgspec.structs.replace(
            ask(key, prompt(20 + key), prompt_logprobs=0), stopping=Stopping(max_tokens=30, ignore_eos=True)
        )
        for key in range(4)
    ]
    steps = run(engine, asked)
    assert sum(step.stats.preemptions for step in steps) > 0
    for request in asked:
        starts = [each.start for each in rows_of(steps, request.key)]
        first_token = next(number for number, step in enumerate(steps) if request.key in step.keys)
        after = [rows for step in steps[first_token + 1 :] for rows in step.prompts if rows.key == request.key]
        assert starts[0] == 1
        assert not after


def test_others_are_not_disturbed(load: Load) -> None:
    alone = run(load(), [ask(1, prompt(40))])
    beside = run(load(), [ask(2, prompt(50), prompt_logprobs=0), ask(1, prompt(40)), ask(3, prompt(9), task="embed")])
    told = [
        [t for step in steps for k, t in zip(step.keys, step.tokens, strict=True) if k == 1]
        for steps in (alone, beside)
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 3


def test_vectors_are_the_states_that_transformers_has(model: Any, load: Load) -> None:
    engine = load()
    asked = [ask(key, prompt(length), task="embed") for key, length in enumerate(LENGTHS)]
    for _ in range(2):
        steps = run(engine, [*asked, ask(99, prompt(20))])
        vectors = {vector.key: vector.data for step in steps for vector in step.vectors}
        ended = {each.key: each for step in steps for each in step.ended}
        for request in asked:
            with torch.inference_mode():
                state = model.network.model(torch.tensor([request.prompt])).last_hidden_state[0, -1]
            vector = torch.frombuffer(bytearray(vectors[request.key]), dtype=torch.float32)
            assert torch.allclose(vector, normalize(state.float(), dim=0), atol=2e-3)
            assert (ended[request.key].reason, ended[request.key].num_tokens) == ("stop", 0)
        assert not any(request.key in step.keys for step in steps for request in asked)
    assert engine.load().running == 0
    assert engine.pool.num_available == engine.spec.num_blocks
