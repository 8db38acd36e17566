"""The gate: loads that win, from whoever is first, never from who was not measured or has just failed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.breaker import FIRST_PAUSE_S, MAX_IDLE_S, MAX_PAUSE_S, PROOFS, Breaker, Trust
from offload.fit import Fit
from offload.gate import NOTHING, Gate, Part

BLOCK_SIZE = 16
TOKEN_S = 1e-4
"""1.6 ms a block."""


def make_gate(**tiers: tuple[float, float]) -> Gate:
    """Return a gate that has measured these tiers: seconds of any load, and of each block."""
    gate = Gate(tiers, block_size=BLOCK_SIZE)
    for tokens in (16, 128, 512, 2048):
        gate.note_step(tokens, 0, 0.002 + tokens * TOKEN_S)
    for num_blocks in (1, 8, 32, 64):
        gate.note_copy(num_blocks, 1e-4 + num_blocks * 1e-5)
        for tier, (base_s, unit_s) in tiers.items():
            gate.note_load(tier, num_blocks, base_s + num_blocks * unit_s, 0.0)
    return gate


@given(st.floats(0, 1), st.floats(0, 0.1), st.lists(st.integers(1, 5000), min_size=4, max_size=30, unique=True))
def test_a_line_is_found_from_its_points(base_s: float, unit_s: float, sizes: list[int]) -> None:
    line = Fit()
    for size in [*sizes, 1, 5000, *sizes]:
        line.add(base_s + size * unit_s, size)
    assert line.predict(100) == pytest.approx(base_s + 100 * unit_s, rel=1e-3, abs=1e-5)


def test_what_a_token_costs_behind_many_others_is_told_from_what_the_first_ones_cost() -> None:
    fit, rng = Fit(2), random.Random(4)
    for _ in range(200):
        tokens, before = rng.choice([0, 1, 16, 100, 512]), rng.choice([0, 512, 4000])
        context = tokens * before + tokens * (tokens - 1) // 2
        fit.add((0.005 + tokens * 1e-4 + context * 1e-7) * rng.uniform(0.9, 1.1), tokens, context)
    assert fit.base_s == pytest.approx(0.005, rel=0.15)
    assert fit.units_s == pytest.approx([1e-4, 1e-7], rel=0.25)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e9)), max_size=40))
def test_no_part_is_ever_negative_whatever_is_measured(points: list[tuple[float, float, float]]) -> None:
    fit = Fit(2)
    for point in points:
        fit.add(*point)
    assert min(fit.base_s, *fit.units_s) >= 0


def test_a_line_follows_what_changes() -> None:
    line = Fit()
    for seconds in [0.001] * 100 + [0.1] * 60:
        line.add(seconds, 10)
    assert line.predict(10) == pytest.approx(0.1, rel=0.1)


def test_a_cold_first_load_is_soon_forgotten() -> None:
    line = Fit()
    for seconds in (0.1, *[0.002] * 7):
        line.add(seconds, 10)
    assert line.predict(10) < 0.015


def test_a_thousand_large_loads_do_not_make_a_small_one_look_free() -> None:
    line = Fit()
    for size in (1, 7, 24, *[300] * 1000):
        line.add(0.1 + size * 1e-4, size)
    assert line.predict(1) == pytest.approx(0.1, rel=0.05)


def test_what_steps_hold_up_on_its_way_out_says_nothing_of_loads() -> None:
    gate, fresh = make_gate(), Gate([], block_size=BLOCK_SIZE)
    before = gate.rate(None)
    for _ in range(20):
        gate.note_store(10, 1.0)
    assert gate.rate(None) == before
    fresh.note_store(10, 1.0)
    assert fresh.rate(None)[1] == pytest.approx(0.1, rel=0.1), "where nothing else is known"


def test_a_load_that_was_held_up_is_forgotten_though_none_follows() -> None:
    gate = Gate([], block_size=BLOCK_SIZE)
    for tokens in (16, 128, 512, 2048):
        gate.note_step(tokens, 0, 0.002 + tokens * TOKEN_S)
    gate.note_copy(10, 1.0)
    assert gate.plan([None] * 10) == NOTHING
    for _ in range(40):
        gate.note_store(10, 1e-4)
    assert gate.plan([None] * 10).num_blocks == 10


def test_a_fast_tier_is_used_to_the_end() -> None:
    plan = make_gate(disk=(0.001, 1e-4)).plan([["disk"]] * 100)
    assert plan.num_blocks == 100
    assert plan.parts == [Part("disk", list(range(100)))]
    assert plan.expected_s < plan.deadline_s < 100 * BLOCK_SIZE * TOKEN_S


def test_a_load_that_would_take_longer_than_computing_is_not_begun() -> None:
    assert make_gate(s3=(0.1, 1e-4)).plan([["s3"]] * 40) == NOTHING
    assert make_gate(s3=(0.1, 1e-4)).plan([["s3"]] * 250).num_blocks == 250
    assert make_gate(s3=(0.001, 0.002)).plan([["s3"]] * 400) == NOTHING


def test_only_as_much_as_pays_is_loaded() -> None:
    """The last blocks are in a tier so slow that waiting for it would cost what the first ones save."""
    plan = make_gate(s3=(0.2, 1e-4)).plan([None] * 100 + [["s3"]] * 20)
    assert (plan.num_blocks, plan.parts) == (100, [])


def test_a_busy_engine_is_a_step_ahead_by_the_time_it_is_answered() -> None:
    gate = make_gate()
    for _ in range(50):
        gate.note_step(0, 0, 0.05)
    assert gate.plan([None] * 20).num_blocks == 20
    assert gate.plan([None] * 20, is_busy=True) == NOTHING
    assert gate.plan([None] * 200, is_busy=True).num_blocks == 200


def test_the_ways_between_engine_and_mover_count() -> None:
    gate = make_gate()
    assert gate.plan([None] * 3).num_blocks == 3
    for num_blocks in (3, 20, 90):
        gate.note_turn(num_blocks, 0.005)
    assert gate.plan([None] * 3) == NOTHING
    assert gate.plan([None] * 20).num_blocks == 20


def test_late_blocks_of_a_long_prompt_are_dearer_to_compute() -> None:
    gate = Gate(["s3"], block_size=BLOCK_SIZE)
    for tokens, before in ((16, 0), (512, 0), (512, 4096), (512, 8192), (16, 8192)):
        gate.note_step(tokens, tokens * before, 0.002 + tokens * (TOKEN_S + before * 1e-7))
    for num_blocks in (1, 8, 32):
        gate.note_load("s3", num_blocks, 0.04 + num_blocks * 1e-4, 0.0)
    assert gate.plan([["s3"]] * 30) == NOTHING
    assert gate.plan([["s3"]] * 30, start=512).num_blocks == 30


def test_loads_grow_step_by_step_from_what_was_measured() -> None:
    gate = make_gate(disk=(0.001, 1e-4))
    assert gate.plan([["disk"]] * 1000).num_blocks == 4 * 64
    gate.note_load("disk", 256, 0.0266, 0.0)
    assert gate.plan([["disk"]] * 1000).num_blocks == 1000
    assert gate.plan([None] * 2000).num_blocks == 2000


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
    for num_blocks in (1, 7, 25):
        assert not gate.is_open("disk")
        gate.note_load("disk", num_blocks, 0.001 + num_blocks * 1e-4, 11.0)
    assert gate.plan([["disk"]] * 100).num_blocks == 100


def test_doubt_about_a_tier_of_changing_speed_makes_it_dearer() -> None:
    rng = random.Random(1)
    steady, erratic = make_gate(s3=(0.02, 1e-4)), make_gate(s3=(0.02, 1e-4))
    for _ in range(50):
        steady.note_load("s3", 10, 0.021, 1.0)
        erratic.note_load("s3", 10, rng.choice([0.002, 0.04]), 1.0)
    assert steady.plan([["s3"]] * 40).num_blocks == 40
    assert erratic.plan([["s3"]] * 40) == NOTHING


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
    for idle_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S, MAX_IDLE_S, MAX_IDLE_S):
        assert not breaker.is_probe_due(now + 0.99 * idle_s)
        now += idle_s
        assert breaker.is_probe_due(now)
        breaker.note_success(now)
