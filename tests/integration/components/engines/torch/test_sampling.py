"""Sampled tokens depend on the sequence alone: not on its batch, its worker, or what it was before it moved."""

from typing import Any

import pytest
import torch

from bus.messages.inference import Sampling

COUNT = 10
SAMPLINGS = [
    Sampling(seed=1),
    Sampling(seed=2, temperature=0.7, top_p=0.9),
    Sampling(seed=3, top_k=20, min_p=0.01),
    Sampling(seed=4, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.3),
    Sampling(seed=5, temperature=1.5, top_logprobs=2, logit_bias={9: 3.0}),
    Sampling(temperature=0.0),
]


@pytest.fixture
def alone(load: Any, drive: Any, prompts: Any) -> list[list[int]]:
    """Tokens of each sampling, each by an engine of its own."""
    tokens = []
    for key, sampling in enumerate(SAMPLINGS):
        single = drive(load())
        single.add(key, prompts[key + 2], sampling, COUNT)
        tokens.append(single.run()[key])
    return tokens


def test_a_batch_changes_nothing(load: Any, drive: Any, prompts: Any, alone: Any) -> None:
    batch = drive(load())
    for key, sampling in enumerate(SAMPLINGS):
        batch.add(key, prompts[key + 2], sampling, COUNT)
        batch.step()
    assert list(batch.run().values()) == alone


def test_a_move_at_any_offset_changes_nothing(load: Any, drive: Any, prompts: Any, alone: Any) -> None:
    for offset in range(1, COUNT):
        moved = drive(load())
        for key, sampling in enumerate(SAMPLINGS):
            moved.add(key, prompts[key + 2], sampling, COUNT, output=alone[key][:offset])
        tokens = moved.run()
        assert [tokens[key] for key in range(len(SAMPLINGS))] == [each[offset:] for each in alone]
        assert {ended.num_tokens for ended in moved.ended.values()} == {COUNT}


def test_seeds_make_the_difference(load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load())
    for key in range(4):
        batch.add(key, prompts[0], Sampling(seed=key % 2), COUNT)
    tokens = batch.run()
    assert tokens[0] == tokens[2] != tokens[1] == tokens[3]


def test_a_moved_sequence_that_was_complete_ends_without_a_token(load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load())
    batch.add(0, prompts[3], Sampling(), 3, output=[5, 6, 7])
    batch.add(1, prompts[3], Sampling(), 9, output=[5, 1], stopping={"ignore_eos": False})
    batch.add(2, prompts[3], Sampling(temperature=0.0), 2)
    batch.add(3, prompts[3], Sampling(), 3, output=[5, 6, 7])
    batch.engine.abort(3)
    assert list(batch.run()) == [2]
    assert {key: (ended.reason, ended.num_tokens) for key, ended in batch.ended.items()} == {
        0: ("length", 3),
        1: ("stop", 2),
        2: ("length", 2),
    }


def test_stop_tokens_end_and_wait_for_min_tokens(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    greedy, prompt = Sampling(temperature=0.0), prompts[4]
    tokens = model.generate(prompt, 8)
    stop = tokens[3]
    batch = drive(load())
    batch.add(0, prompt, greedy, stopping={"stop_token_ids": [stop]})
    batch.add(1, prompt, greedy, stopping={"stop_token_ids": [stop], "min_tokens": tokens.index(stop) + 1})
    batch.run()
    assert batch.tokens[0] == tokens[: tokens.index(stop) + 1]
    assert (batch.ended[0].reason, batch.ended[0].num_tokens) == ("stop", tokens.index(stop) + 1)
    assert stop not in batch.tokens[1][: tokens.index(stop) + 1]


def test_logprobs_are_those_of_transformers(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load())
    for key in (0, 1):
        batch.add(key, prompts[key + 5], Sampling(seed=key, temperature=2.0, top_k=9, top_logprobs=4), COUNT)
    for key, tokens in batch.run().items():
        prompt = prompts[key + 5]
        reference = model.logits([*prompt, *tokens]).log_softmax(-1)[len(prompt) - 1 : -1]
        for row, token, given in zip(reference, tokens, batch.logprobs[key], strict=True):
            torch.testing.assert_close(torch.tensor(given.logprob), row[token], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(torch.tensor(given.top_logprobs), row.topk(4).values, atol=1e-4, rtol=1e-4)
            assert [float(row[top]) for top in given.top_ids] == pytest.approx(given.top_logprobs, abs=1e-4)
