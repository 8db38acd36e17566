"""Estimates of how fast a queue gets shorter: only of times with a queue, and not for ever."""

import pytest

from bus.drain import DrainRate


def let_pass(drain: DrainRate, first_s: float, seconds: float, *, per_s: float = 0.0, had_queue: bool = True) -> float:
    """Look every tenth of a second; return the time after that."""
    for number in range(round(seconds * 10) + 1):
        drain.note(first_s + number / 10, round(per_s / 10), had_queue=had_queue)
    return first_s + seconds


def test_what_leaves_is_counted_only_while_there_is_a_queue() -> None:
    drain = DrainRate()
    now = let_pass(drain, 0.0, 20.0, per_s=100.0)
    let_pass(drain, now + 0.1, 2.0, per_s=5000.0, had_queue=False)
    assert drain.per_s == pytest.approx(100.0, rel=0.02)


def test_the_rate_is_not_believed_before_there_was_a_queue_for_a_second() -> None:
    drain = DrainRate()
    now = let_pass(drain, 0.0, 0.9, per_s=100.0)
    assert drain.per_s is None
    let_pass(drain, now + 0.1, 0.5, per_s=100.0)
    assert drain.per_s is not None


def test_what_is_known_of_a_queue_fades_when_there_is_none() -> None:
    """A router refused a request for what it had seen a quarter of a minute before, while workers died."""
    drain = DrainRate()
    now = let_pass(drain, 0.0, 60.0, per_s=10.0)
    let_pass(drain, now + 0.1, 15.0, had_queue=False)
    assert drain.per_s is None
