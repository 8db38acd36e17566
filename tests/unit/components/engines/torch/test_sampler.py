"""The sampler against plain formulas, one row and one token at a time."""

import math
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest
from components.engines.batching.sequence import Sequence
from components.engines.torch.randomness import uniforms
from components.engines.torch.sampler import sample

VOCAB = 50
PROMPT, OUTPUT = [3, 4, 4, 5], [5, 6, 6]


def sequence(sampling: Sampling, *, output: list[int] = OUTPUT, **stopping: Any) -> Sequence:
    request = EngineRequest(1, PROMPT, output, sampling, Stopping(max_tokens=100, **stopping), frozenset([0]))
    return Sequence(request, model="m", max_model_len=1000)


def logits(rows: int = 1, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def choose(row: Tensor, sampling: Sampling, **options: Any) -> int:
    return sample(row, [sequence(sampling, **options)]).tokens[0]


def expected(row: Tensor, sampling: Sampling, output: list[int] = OUTPUT) -> int:
    """Adjust, truncate and draw as the definitions say."""
    scores = row[0].tolist()
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    for token in {*PROMPT, *output}:
        factor = sampling.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        scores[token] -= sampling.frequency_penalty * output.count(token)
        scores[token] -= sampling.presence_penalty * (token in output)
    ranked = sorted(range(len(scores)), key=lambda token: -scores[token])
    if sampling.temperature == 0.0:
        return ranked[0]
    best = scores[ranked[0]]
    weights = {token: math.exp((scores[token] - best) / sampling.temperature) for token in ranked}
    weights = {token: weight for token, weight in weights.items() if weight >= sampling.min_p}
    if sampling.top_k:
        weights = dict(list(weights.items())[: sampling.top_k])
    mass, kept = sum(weights.values()), {}
    for token, weight in weights.items():
        if kept and sum(kept.values()) >= sampling.top_p * mass:
            break
        kept[token] = weight
    share = float(uniforms([sampling.seed], [len(output)])[0]) * sum(kept.values())
    for token in sorted(kept):
        share -= kept[token]
        if share < 0:
            return token
    raise AssertionError


CASES = {
    "greedy": Sampling(temperature=0.0),
    "plain": Sampling(),
    "cold": Sampling(temperature=0.3),
    "hot": Sampling(temperature=3.0),
    "freezing": Sampling(temperature=1e-30),
    "top_k": Sampling(top_k=5),
    "top_k of more than there are": Sampling(top_k=2**31),
    "top_p": Sampling(top_p=0.7),
    "top_p 0": Sampling(top_p=0.0),
    "min_p": Sampling(min_p=0.1),
    "min_p 1": Sampling(min_p=1.0),
    "all three": Sampling(top_k=8, top_p=0.8, min_p=0.05, temperature=2.0),
    "repetition": Sampling(temperature=0.0, repetition_penalty=1.7),
    "repetition below 1": Sampling(temperature=0.0, repetition_penalty=0.5),
    "frequency": Sampling(temperature=0.0, frequency_penalty=1.9),
    "presence": Sampling(temperature=0.0, presence_penalty=-2.0),
    "all penalties": Sampling(repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.5),
    "bias": Sampling(temperature=0.0, logit_bias={7: 100.0, 8: -100.0}),
    "everything": Sampling(top_p=0.9, top_k=20, repetition_penalty=1.3, presence_penalty=1.0, logit_bias={4: 2.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_choice_follows_the_definition(name: str) -> None:
    for seed in range(10):
        row = logits(seed=seed)
        sampling = msgspec.structs.replace(CASES[name], seed=seed)
        assert choose(row, sampling) == expected(row, sampling)


def test_each_row_is_chosen_as_if_it_were_alone() -> None:
    rows = logits(len(CASES))
    together = sample(rows, [sequence(sampling) for sampling in CASES.values()]).tokens
    assert together == [choose(rows[index : index + 1], each) for index, each in enumerate(CASES.values())]


def test_sixteen_bit_logits_are_adjusted_in_full_precision_and_not_changed() -> None:
    rows = logits(2).bfloat16()
    before = rows.clone()
    sampling = Sampling(temperature=0.0, logit_bias={7: 100.0})
    assert sample(rows, [sequence(sampling), sequence(Sampling(temperature=0.0))]).tokens[0] == 7
    assert torch.equal(rows, before)
    full = logits(1)
    before = full.clone()
    choose(full, sampling)
    assert torch.equal(full, before)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    rows = logits(1).expand(1000, VOCAB)
    tokens = sample(rows, [sequence(Sampling(seed=seed)) for seed in range(1000)]).tokens
    likely = rows[0].softmax(-1)
    for token in likely.topk(4).indices.tolist():
        assert abs(tokens.count(token) / 1000 - likely[token]) < 0.05


@pytest.mark.parametrize(
    "limits", [Sampling(top_p=0.9), Sampling(top_k=700), Sampling(top_k=700, top_p=0.5), Sampling(min_p=0.9)]
)
def test_a_wide_cut_over_a_flat_vocabulary_is_exact(limits: Sampling) -> None:
    row = logits(1, vocab=1000) * 0.01
    for seed in range(3):
        sampling = msgspec.structs.replace(limits, seed=seed)
        assert choose(row, sampling) == expected(row, sampling)


def test_stop_tokens_cannot_come_too_early() -> None:
    row = logits()
    row[0, 0] = row[0, 9] = 100.0
    greedy = Sampling(temperature=0.0)
    early = choose(row, greedy, min_tokens=4, stop_token_ids=[9, 1000])
    assert early not in (0, 9)
    assert choose(row, greedy, min_tokens=4, ignore_eos=True) == 0
    assert choose(row, greedy, min_tokens=3, stop_token_ids=[9]) == 0


def test_logprobs_are_those_of_the_model_before_any_adjustment() -> None:
    rows = logits(3)
    asked = Sampling(temperature=0.0, top_logprobs=3, logit_bias={11: 100.0})
    only_own = Sampling(top_logprobs=0, top_k=2)
    sampled = sample(rows, [sequence(asked), sequence(Sampling()), sequence(only_own)])
    reference = rows.log_softmax(-1)
    assert [each.row for each in sorted(sampled.logprobs, key=lambda each: each.row)] == [0, 2]
    first = next(each for each in sampled.logprobs if each.row == 0)
    top, ids = reference[0].topk(3)
    assert sampled.tokens[0] == 11
    assert first.logprob == pytest.approx(float(reference[0, 11]), rel=1e-5)
    assert first.top_ids == ids.tolist()
    assert first.top_logprobs == pytest.approx(top.tolist(), rel=1e-5)
    last = next(each for each in sampled.logprobs if each.row == 2)
    assert (last.top_ids, last.top_logprobs) == ([], [])
    assert last.logprob == pytest.approx(float(reference[2, sampled.tokens[2]]), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", CASES)
def test_rows_that_are_not_finite_are_named(name: str, value: float) -> None:
    rows = logits(3)
    rows[1, 17] = value
    assert sample(rows, [sequence(CASES[name])] * 3).broken == {1}
    rows[1] = -math.inf
    assert sample(rows, [sequence(CASES[name])] * 3).broken == {1}
