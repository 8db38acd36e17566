"""Samples of engine steps stay few, and spread over the time since the last report."""

from itertools import pairwise

from components.engines import StepStats
from components.worker.steps import MAX_SAMPLES, StepSamples


def add(samples, count):
    for number in range(count):
        samples.add(StepStats(number / 1000, number, 1, 2, 3))


def test_few_steps_are_all_told_once():
    samples = StepSamples()
    add(samples, 3)
    assert [(s.duration_s, s.prefill_tokens, s.decode_requests, s.kv_tokens) for s in samples.take()] == [
        (0.0, 0, 2, 3),
        (0.001, 1, 2, 3),
        (0.002, 2, 2, 3),
    ]
    assert samples.take() == []


def test_many_steps_are_thinned_evenly():
    samples = StepSamples()
    add(samples, 10 * MAX_SAMPLES)
    told = [sample.prefill_tokens for sample in samples.take()]
    assert MAX_SAMPLES // 2 <= len(told) <= MAX_SAMPLES
    gaps = {later - earlier for earlier, later in pairwise(told)}
    assert max(gaps) <= 2 * min(gaps)
    add(samples, 2)
    assert len(samples.take()) == 2
