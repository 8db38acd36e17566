"""The gate: loads that win, from whoever is first, never from who was not measured or has just failed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.breaker import FIRST_PAUSE_S, IDLE_PROBE_S, MAX_PAUSE_S, PROOFS, Breaker, Trust
from offload.fit import Line
from offload.gate import NOTHING, Gate, Part

BLOCK_SIZE = 16
TOKEN_S = 1e-4
"""1.6 ms a block."""


def make_gate(**tiers: tuple[float, float]) -> Gate:
    """Return a gate that has measured these tiers: seconds of any load, and of each block."""
    gate = Gate(tiers, block_size=BLOCK_SIZE)
    for tokens in (16, 128, 512, 2048):
        gate.note_step(tokens, 0.002 + tokens * TOKEN_S)
    for num_blocks in (1, 8, 32, 64):
        gate.note_copy(num_blocks, 1e-4 + num_blocks * 1e-5)
        for tier, (base_s, unit_s) in tiers.items():
            gate.note_load(tier, num_blocks, base_s + num_blocks * unit_s, 0.0)
    return gate


@given(st.floats(0, 1), st.floats(0, 0.1), st.lists(st.integers(1, 5000), min_size=4, max_size=30, unique=True))
def test_a_line_is_found_from_its_points(base_s: float, unit_s: float, sizes: list[int]) -> None:
    line = Line()
    for size in [*sizes, 1, 5000]:
        line.add(size, base_s + size * unit_s)
    assert line.predict(100) == pytest.approx(base_s + 100 * unit_s, rel=1e-3, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e6)), max_size=40))
def test_a_line_is_never_negative_whatever_is_measured(points: list[tuple[float, float]]) -> None:
    line = Line()
    for point in points:
        line.add(*point)
    assert line.base_s >= -1e-9 * (1 + line.unit_s)
    assert line.unit_s >= 0


def test_a_line_follows_what_changes() -> None:
    line = Line()
    for seconds in [0.001] * 100 + [0.1] * 60:
        line.add(10, seconds)
    assert line.predict(10) == pytest.approx(0.1, rel=0.1)


def test_a_fast_tier_is_used_to_the_end() -> None:
    plan = make_gate(disk=(0.001, 1e-4)).plan([["disk"]] * 100)
    assert plan.num_blocks == 100
    assert plan.parts == [Part("disk", list(range(100)))]
    assert plan.expected_s < plan.deadline_s < 100 * BLOCK_SIZE * TOKEN_S


def test_a_load_that_would_take_longer_than_computing_is_not_begun() -> None:
    assert make_gate(s3=(0.1, 1e-4)).plan([["s3"]] * 40) == NOTHING
    assert make_gate(s3=(0.1, 1e-4)).plan([["s3"]] * 400).num_blocks == 400
    assert make_gate(s3=(0.001, 0.002)).plan([["s3"]] * 400) == NOTHING


def test_only_as_much_as_pays_is_loaded() -> None:
    """The last blocks are in a tier so slow that waiting for it would cost what the first ones save."""
    plan = make_gate(s3=(0.2, 1e-4)).plan([None] * 100 + [["s3"]] * 20)
    assert (plan.num_blocks, plan.parts) == (100, [])


def test_a_gap_ends_the_load() -> None:
    gate = make_gate(disk=(0.001, 1e-4))
    assert gate.plan([["disk"]] * 10 + [[]] + [["disk"]] * 10).num_blocks == 10
    assert gate.plan([[]]) == gate.plan([]) == NOTHING


def test_two_tiers_share_what_both_have_by_their_speed() -> None:
    plan = make_gate(disk=(0.0, 1e-4), redis=(0.0, 3e-4)).plan([["redis", "disk"]] * 100)
    shares = {part.tier: len(part.positions) for part in plan.parts}
    assert sum(shares.values()) == 100
    assert 20 <= shares["redis"] <= 30


def test_nothing_is_loaded_before_the_speed_of_computing_is_known() -> None:
    gate = Gate([], block_size=BLOCK_SIZE)
    assert gate.plan([None] * 10) == NOTHING


def test_a_tier_is_not_waited_for_until_it_was_probed_and_not_after_it_failed() -> None:
    gate = make_gate(disk=(0.001, 1e-4))
    assert gate.note_failure("disk", 10.0)
    assert gate.plan([["disk"]] * 100) == NOTHING
    for _ in range(PROOFS):
        assert not gate.is_open("disk")
        gate.note_load("disk", 8, 0.002, 11.0)
    assert gate.plan([["disk"]] * 100).num_blocks == 100


def test_doubt_about_a_tier_of_changing_speed_makes_it_dearer() -> None:
    rng = random.Random(1)
    steady, erratic = make_gate(s3=(0.02, 1e-4)), make_gate(s3=(0.02, 1e-4))
    for _ in range(50):
        steady.note_load("s3", 10, 0.021, 1.0)
        erratic.note_load("s3", 10, rng.choice([0.002, 0.04]), 1.0)
    assert steady.plan([["s3"]] * 30).num_blocks == 30
    assert erratic.plan([["s3"]] * 30) == NOTHING


def test_a_breaker_pauses_longer_after_each_failure_and_comes_back_by_probes() -> None:
    breaker, now = Breaker(), 0.0
    assert breaker.is_probe_due(now)
    pauses = []
    for _ in range(12):
        breaker.note_failure(now)
        start = now
        while not breaker.is_probe_due(now):
            now += FIRST_PAUSE_S / 2
        pauses.append(now - start)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, MAX_PAUSE_S)
    for _ in range(PROOFS):
        assert breaker.trust is Trust.UNPROVEN
        breaker.note_success(now)
    assert breaker.trust is Trust.PROVEN
    assert not breaker.is_probe_due(now)
    assert breaker.is_probe_due(now + IDLE_PROBE_S)
