"""What is known of workers: reports, decisions since then, room, silence."""

import math
from collections.abc import Callable

import pytest

from bus.messages.fleet import StepSample, WorkerCard, WorkerLoad
from components.router.fleet import DEAD_S, Fleet, Flight

NOW = 50.0


@pytest.fixture
def fleet(
    card: Callable[..., WorkerCard], load: Callable[..., WorkerLoad], steps: Callable[..., list[StepSample]]
) -> Fleet[str]:
    fleet: Fleet[str] = Fleet(1.0, 0.0)
    for name in ("a", "b"):
        fleet.join(card(name), NOW)
        for _ in range(10):
            fleet.report(load(name, steps=steps()), NOW)
    return fleet


def flight(tokens: int, at: float = NOW, item: str | None = None) -> Flight[str]:
    return Flight(at, tokens, -(-tokens // 64), item)


def test_costs_are_the_time_to_the_first_token(fleet: Fleet[str]) -> None:
    fleet.place(0, "q", flight(8192))
    busy, idle = fleet.costs(4096, NOW)
    assert idle == pytest.approx(0.01 + 4096 * 2e-5, rel=0.1)
    assert busy - idle == pytest.approx(0.01 + 8192 * 2e-5, rel=0.1)
    assert fleet.costs(4096, NOW + 10)[0] == pytest.approx(idle, rel=0.01)


def test_a_report_that_counts_a_request_ends_the_bridge(fleet: Fleet[str], load: Callable[..., WorkerLoad]) -> None:
    fleet.place(0, "q", flight(8192))
    fleet.report(load("a"), NOW + 0.001)
    assert fleet.num_requests()[0] == 1, "too early to count it"
    fleet.report(load("a", running=1, prefill_tokens=8192), NOW + 0.05)
    assert fleet.num_requests()[0] == 1
    assert 0.1 < fleet.free_at[0] - NOW - 0.05 < 0.2, "a part of its step is over"
    fleet.report(load("a", running=1), NOW + 0.3)
    assert fleet.free_at[0] <= NOW + 0.3


def test_what_a_worker_without_room_may_not_have_taken_comes_back_when_it_leaves(
    fleet: Fleet[str], load: Callable[..., WorkerLoad], card: Callable[..., WorkerCard]
) -> None:
    fleet.place(0, "q", flight(64, item="q"))
    fleet.report(load("a", taken=card("a").slots), NOW + 5.0)
    assert fleet.leave("a") == ["q"]
    fleet.place(1, "r", flight(64, item="r"))
    fleet.report(load("b"), NOW + 5.0)
    assert fleet.leave("b") == []


def test_reports_win_against_what_was_thought(fleet: Fleet[str], load: Callable[..., WorkerLoad]) -> None:
    for number in range(20):
        fleet.place(0, str(number), flight(8192))
    fleet.report(load("a"), NOW + 1.0)
    assert fleet.free_at[0] <= NOW + 1.0
    fleet.report(load("a", prefill_tokens=81_920, running=10), NOW + 2.0)
    assert fleet.free_at[0] - NOW - 2.0 > 1.0


def test_waiting_prompts_may_be_cached(fleet: Fleet[str], load: Callable[..., WorkerLoad]) -> None:
    fleet.place(0, "q", flight(500))
    free_at = fleet.free_at[0]
    fleet.report(load("a", waiting=1, prefill_tokens=60_000, waiting_tokens=60_000), NOW + 0.02)
    assert fleet.free_at[0] <= max(free_at, NOW + 0.02) + 1e-9


def test_room_is_one_step_of_work_a_place_and_blocks(fleet: Fleet[str], load: Callable[..., WorkerLoad]) -> None:
    assert fleet.can_start(0, 100, NOW)
    fleet.place(0, "q", flight(8000))
    assert fleet.can_start(0, 100, NOW), "one step's work at most"
    fleet.place(0, "r", flight(8000))
    assert not fleet.can_start(0, 100, NOW)
    assert fleet.can_start(0, 100, NOW + 0.3)
    assert NOW < fleet.next_room_at(NOW) < NOW + 0.3
    fleet.report(load("b", running=60, free_blocks=200), NOW)
    assert fleet.can_start(1, 100, NOW)
    assert not fleet.can_start(1, 150, NOW), "every request that runs may need a block"
    assert not fleet.can_start(1, 1, NOW, 0.25), "places that batch leaves free"
    fleet.report(load("b", running=64, waiting=1), NOW)
    assert not fleet.can_start(1, 1, NOW)


def test_an_idle_worker_takes_whatever_it_is(fleet: Fleet[str]) -> None:
    assert fleet.can_start(0, 10**9, NOW)


def test_a_worker_that_left_costs_infinitely_and_gives_back_what_was_on_its_way(
    fleet: Fleet[str], card: Callable[..., WorkerCard], load: Callable[..., WorkerLoad]
) -> None:
    fleet.place(0, "q", flight(100, item="first"))
    fleet.place(0, "foreign", flight(100))
    fleet.report(load("a"), NOW + 0.3)
    fleet.place(0, "r", flight(100, NOW + 0.3, "second"))
    assert fleet.leave("a") == ["first", "second"]
    assert fleet.costs(1, NOW)[0] == math.inf
    assert fleet.leave("a") == []
    assert fleet.join(card("c"), NOW) == 0
    assert fleet.costs(1, NOW)[0] < math.inf


def test_what_a_later_report_proves_accepted_is_not_given_back(
    fleet: Fleet[str], load: Callable[..., WorkerLoad]
) -> None:
    fleet.place(0, "q", flight(100, item="first"))
    fleet.report(load("a", running=1), NOW + 0.6)
    assert fleet.leave("a") == []


def test_silence_costs_and_then_kills_and_is_excused(fleet: Fleet[str], load: Callable[..., WorkerLoad]) -> None:
    fleet.report(load("b"), NOW + 2.0)
    before = fleet.costs(100, NOW + 2.0)[0]
    assert fleet.silent(NOW + 2.0) == []
    assert fleet.costs(100, NOW + 2.0)[0] > before + 1.0
    assert fleet.silent(NOW + DEAD_S + 0.1) == ["a"]
    fleet.excuse_silence(NOW + DEAD_S + 0.1)
    assert fleet.silent(NOW + DEAD_S + 0.2) == []


def test_what_did_not_get_on_its_way_is_taken_back(fleet: Fleet[str]) -> None:
    before = fleet.costs(100, NOW)
    fleet.place(0, "q", flight(8192))
    fleet.withdraw(0, "q", NOW)
    fleet.withdraw(0, "q", NOW)
    assert fleet.costs(100, NOW) == pytest.approx(before, abs=0.01), "but for a started step"


def test_a_newcomer_is_expected_to_be_as_the_others(fleet: Fleet[str], card: Callable[..., WorkerCard]) -> None:
    fleet.join(card("c"), NOW)
    _, known, new = fleet.costs(4096, NOW)
    assert new == pytest.approx(known, rel=0.1)


def test_reports_of_strangers_change_nothing(fleet: Fleet[str], load: Callable[..., WorkerLoad]) -> None:
    fleet.report(load("x"), NOW)
    assert set(fleet.numbers) == {"a", "b"}
