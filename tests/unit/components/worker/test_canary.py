"""An engine that is stuck, wrong or broken is found; one that is slow, idle or disturbed is not."""

import pytest

from bus.errors import EngineDied
from components.engines import Ended, EngineLoad, EngineSpec, Logprobs, Step, StepStats
from components.worker.canary import MAX_BROKEN, MAX_WRONG, NUM_TOKENS, Canary

SPEC = EngineSpec(name="m", max_model_len=100, max_running=4, block_size=16, num_blocks=8, vocab_size=1000)
STATS = StepStats(0.0, 0, 0, 0, 0)
KEY = 7


def make_canary() -> Canary:
    return Canary(SPEC, idle_s=10.0, stall_s=4.0, now=0.0)


def look(canary: Canary, until: float, num_live: int = 0, *, start: float = 0.0) -> float | None:
    """Look often enough; return when a generation is due."""
    now = start
    while now < until:
        now += canary.period_s
        if canary.look(now, num_live):
            return now
    return None


def answer(canary: Canary, tokens: list[int], now: float, reason: str = "length") -> None:
    canary.ask(KEY)
    for token in tokens:
        canary.take(Step([KEY], [token], [], [], STATS), now)
    left = canary.take(Step([], [], [Ended(KEY, reason, len(tokens), 0)], [], STATS), now)  # type: ignore[arg-type]
    assert (left.keys, left.ended) == ([], [])


def test_an_idle_engine_is_asked_and_one_that_works_is_not() -> None:
    canary = make_canary()
    assert look(canary, 30.0) == 10.0
    canary.take(Step([1], [1], [], [], STATS), 15.0)
    assert look(canary, 24.0, start=15.0) is None
    assert not Canary(SPEC, idle_s=0.0, stall_s=4.0, now=0.0).look(1.0, 0)


def test_its_tokens_are_told_apart_from_those_of_others() -> None:
    canary = make_canary()
    request = canary.ask(KEY)
    assert len(request.prompt) < SPEC.block_size
    step = Step([1, KEY, 2], [10, 20, 30], [], [Logprobs(0, -1.0, [], []), Logprobs(2, -2.0, [], [])], STATS)
    left = canary.take(step, 1.0)
    assert (left.keys, left.tokens) == ([1, 2], [10, 30])
    assert [(each.row, each.logprob) for each in left.logprobs] == [(0, -1.0), (1, -2.0)]


def test_no_step_with_work_is_death_and_without_work_is_rest() -> None:
    canary = make_canary()
    assert look(canary, 9.0) is None
    with pytest.raises(EngineDied, match="no step for"):
        look(canary, 20.0, num_live=3, start=9.0)
    canary = make_canary()
    canary.ask(KEY)
    with pytest.raises(EngineDied, match="with 0 sequences"):
        look(canary, 9.0)


def test_an_engine_that_makes_no_step_for_a_second_is_stuck_until_it_makes_one() -> None:
    canary, busy, idle = make_canary(), EngineLoad(1, 0, 8, 0), EngineLoad(0, 1, 8, 0)
    step = Step([1], [1], [], [], StepStats(0.02, 0, 0, 0, 0))
    look(canary, 1.0, num_live=1)
    canary.take(step, 1.0)
    look(canary, 1.75, num_live=1, start=1.0)
    assert not canary.is_stuck(1.75, busy)
    look(canary, 2.25, num_live=1, start=1.75)
    assert not canary.is_stuck(2.25, idle), "what waits may wait for blocks"
    assert canary.is_stuck(2.25, busy)
    look(canary, 4.0, num_live=0, start=2.25)
    assert canary.is_stuck(4.0, idle), "giving everything back does not mend it"
    with pytest.raises(EngineDied, match="no step for"):
        look(canary, 6.0, start=4.0)
    canary.take(step, 6.0)
    assert not canary.is_stuck(6.0, busy)


def test_a_process_that_stood_still_does_not_blame_its_engine() -> None:
    canary = make_canary()
    look(canary, 2.0, num_live=1)
    assert not canary.look(60.0, 1)
    canary.take(Step([1], [1], [], [], STATS), 60.5)
    assert look(canary, 64.0, num_live=1, start=60.0) is None


def test_another_answer_than_before_is_wrong_and_thrice_is_death() -> None:
    canary = make_canary()
    good, bad = [1, 2, 3, 4], [1, 2, 3, 5]
    for tokens in (good, bad, bad, good, *[bad] * (MAX_WRONG - 1)):
        answer(canary, tokens, 1.0)
        assert not canary.look(1.0, 0)
    answer(canary, bad, 1.0)
    with pytest.raises(EngineDied, match="something else"):
        canary.look(1.0, 0)
    assert len(good) == NUM_TOKENS


def test_values_that_are_not_finite_end_the_engine_when_nothing_else_comes() -> None:
    canary = make_canary()
    for number in range(MAX_BROKEN - 1):
        canary.take(Step([], [], [Ended(number, "abort", 0, 0)], [], STATS), 1.0)
    canary.take(Step([], [], [Ended(99, "abort", 0, 0, "your grammar")], [], STATS), 1.0)
    assert not canary.look(1.0, 0)
    for number in range(MAX_BROKEN):
        canary.take(Step([], [], [Ended(number, "abort", 0, 0)], [], STATS), 1.0)
    with pytest.raises(EngineDied, match="came to nothing"):
        canary.look(1.0, 0)
