"""A step that takes far longer than those before it is told from one that has more to do."""

import pytest

from components.engines import StepStats
from components.worker.pace import PATIENCE_S, SLOWER, Pace


def note(pace: Pace, duration_s: float, prefill_tokens: int = 0, *, times: int = 1) -> None:
    for _ in range(times):
        pace.note(StepStats(duration_s, prefill_tokens, 0, 0, 0))


def test_what_was_never_seen_may_take_as_long_as_it_wants() -> None:
    pace = Pace()
    assert pace.patience_s(0) is None
    note(pace, 0.02)
    assert pace.patience_s(0) is not None
    assert pace.patience_s(100) is None


def test_fast_steps_are_waited_for_a_second_and_slow_ones_longer() -> None:
    pace = Pace()
    note(pace, 0.02)
    assert pace.patience_s(0) == PATIENCE_S
    note(pace, 0.5)
    assert pace.patience_s(0) == pytest.approx(SLOWER * 0.5)


def test_a_long_prompt_is_waited_for_by_its_length() -> None:
    pace = Pace()
    note(pace, 0.02)
    note(pace, 0.1, 100)
    assert pace.patience_s(2000) == pytest.approx(SLOWER * (0.02 + 2.0))


def test_one_slow_step_is_forgotten() -> None:
    pace = Pace()
    note(pace, 30.0)
    note(pace, 0.02, times=700)
    assert pace.patience_s(0) == PATIENCE_S
