"""The step-time model learns what steps cost, and never says something absurd on the way."""

import random

import msgspec
import pytest

from components.router.model import PACE_SLACK, StepModel, StepTimes
from components.router.regression import Coefficients

TRUE = Coefficients(step_s=0.016, prefill_token_s=2e-5, decode_request_s=1e-4, kv_token_s=5e-9)


def observe(model: StepModel, num_steps: int, rng: random.Random, true: Coefficients = TRUE) -> None:
    for _ in range(num_steps):
        prefill = rng.choice([0, 0, 0, 512, 4096, 8192])
        decode = rng.randrange(1, 64)
        context = decode * rng.randrange(1000, 12_000)
        duration = (
            true.step_s + true.prefill_token_s * prefill + true.decode_request_s * decode + true.kv_token_s * context
        )
        model.observe(duration * rng.uniform(0.95, 1.05), prefill, decode, context)
        model.fit()


def test_it_learns_from_steps_with_noise() -> None:
    model = StepModel(StepTimes(Coefficients()))
    observe(model, 300, random.Random(1))
    for prefill, decode, context in [(8192, 10, 50_000), (0, 32, 200_000), (512, 1, 4000)]:
        true = 0.016 + 2e-5 * prefill + 1e-4 * decode + 5e-9 * context
        assert model.step_s(prefill, decode, context) == pytest.approx(true, rel=0.08)
    assert model.chunk_tokens == 8192


def test_it_follows_a_worker_that_became_slower() -> None:
    model, rng = StepModel(StepTimes(Coefficients())), random.Random(2)
    observe(model, 500, rng)
    slow = Coefficients(step_s=0.032, prefill_token_s=4e-5, decode_request_s=2e-4, kv_token_s=1e-8)
    for _ in range(40):
        observe(model, 25, rng, slow)
    assert model.step_s(8192, 10, 50_000) == pytest.approx(0.032 + 0.32768 + 0.002 + 0.0005, rel=0.1)


def test_decode_steps_alone_leave_the_prior_of_prefill() -> None:
    model = StepModel(StepTimes(Coefficients()))
    for decode in range(1, 60):
        model.observe(0.01, 0, decode, decode * 2000)
        model.fit()
    assert model.step_s(1000, 0, 0) == pytest.approx(0.005 + 1000 * 3e-5)
    assert model.step_s(0, 20, 40_000) == pytest.approx(0.01, rel=0.1)


def test_steps_that_take_no_time_lead_to_no_time() -> None:
    model = StepModel(StepTimes(Coefficients()))
    for count in range(200):
        model.observe(0.0, count % 3 * 500, count % 50, count * 100)
        model.fit()
    assert 0.0 <= model.prefill_s(8192, 64, 100_000) < 0.01


def test_no_coefficient_is_negative_whatever_comes() -> None:
    model, rng = StepModel(StepTimes(Coefficients())), random.Random(3)
    for _ in range(500):
        model.observe(rng.uniform(0, 3600), rng.randrange(2**20), rng.randrange(4096), rng.randrange(2**40))
        model.fit()
        assert min(model.step_s(1, 0, 0), model.step_s(0, 1, 0), model.step_s(0, 0, 1), model.step_s(0, 0, 0)) >= 0


def test_a_long_prompt_takes_several_steps() -> None:
    model = StepModel(StepTimes(Coefficients(step_s=0.1, prefill_token_s=1e-5)))
    assert model.prefill_s(0) == 0.0
    assert model.prefill_s(4 * model.chunk_tokens) == pytest.approx(0.05 + 0.4 + 1e-5 * 4 * model.chunk_tokens)


def test_prompts_are_not_forgotten_while_others_decode() -> None:
    model, rng = StepModel(StepTimes(Coefficients())), random.Random(5)
    observe(model, 300, rng)
    before = model.step_s(8192, 10, 50_000)
    for _ in range(10_000):
        model.observe(0.02, 0, 8, 40_000)
    model.fit()
    assert model.step_s(8192, 10, 50_000) == before


def test_workers_learn_together_so_that_a_new_one_is_as_its_peers() -> None:
    peer = StepModel.like([])
    observe(peer, 300, random.Random(4))
    new = StepModel.like([peer])
    assert new.prefill_line(8, 40_000) == peer.prefill_line(8, 40_000)
    assert new.chunk_tokens == 8192
    observe(new, 300, random.Random(6))
    assert new.prefill_line(8, 40_000) == peer.prefill_line(8, 40_000), "whatever noise each of them saw"


def test_who_takes_twice_as_long_is_known_for_it_and_changes_little_for_others() -> None:
    models = [StepModel.like([])]
    models += [StepModel.like(models) for _ in range(3)]
    rng = random.Random(7)
    slow = Coefficients(*[2 * value for value in msgspec.structs.astuple(TRUE)])
    for _ in range(200):
        observe(models[0], 1, rng, slow)
        for fast in models[1:]:
            observe(fast, 1, rng)
    true = TRUE.step_s + TRUE.prefill_token_s * 4096
    assert 2 * true / PACE_SLACK < models[0].step_s(4096, 0, 0) < 2 * true * PACE_SLACK
    assert [fast.pace for fast in models[1:]] == [1.0, 1.0, 1.0]
    assert models[1].step_s(4096, 0, 0) == pytest.approx(true, rel=0.1)


def test_who_was_slow_for_a_while_counts_as_equal_again() -> None:
    models = [StepModel.like([])]
    models += [StepModel.like(models) for _ in range(3)]
    rng = random.Random(8)
    slow = Coefficients(*[2 * value for value in msgspec.structs.astuple(TRUE)])
    for true in (slow, TRUE):
        for _ in range(400):
            observe(models[0], 1, rng, true)
            for fast in models[1:]:
                observe(fast, 1, rng)
    assert [model.pace for model in models] == [1.0, 1.0, 1.0, 1.0]
