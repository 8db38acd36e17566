"""A worker is alive as long as it is heard; one without a card gets less patience."""

from msgspec import structs

from bus.messages.fleet import WorkerCard
from bus.subjects import slug
from frontend.fleet import STALLED_S, Fleet

CARD = WorkerCard(
    worker="w-1",
    model="M/1",
    engine="mock",
    roles=["both"],
    slots=1,
    block_size=16,
    num_blocks=1,
    max_model_len=1,
    host="h",
    pid=1,
    version="0",
    started_at=0.0,
)
SLUG = slug(CARD.model)


def make_fleet() -> Fleet:
    fleet = Fleet(3.0)
    fleet.arrive("w-1", CARD, 0.0)
    return fleet


def test_a_silent_worker_dies_once() -> None:
    fleet = make_fleet()
    fleet.hear("w-1", 2.0)
    assert fleet.bury_silent(5.0) == []
    assert fleet.bury_silent(5.1) == ["w-1"]
    assert fleet.bury_silent(9.0) == []
    assert not fleet.serves(SLUG)


def test_a_worker_that_left_and_talks_still_runs_what_it_has() -> None:
    fleet = make_fleet()
    assert fleet.serves(SLUG)
    fleet.leave("w-1")
    assert not fleet.serves(SLUG)
    for now in (0.5, 1.0, 1.5):
        fleet.hear("w-1", now)
        assert fleet.bury_silent(now + 0.25) == []
    assert fleet.bury_silent(2.3) == ["w-1"]


def test_silence_is_excused_when_this_process_could_not_hear() -> None:
    fleet = make_fleet()
    fleet.excuse_silence(100.0)
    assert fleet.bury_silent(102.0) == []


def test_a_buried_worker_that_talks_again_waits_for_its_card_to_serve() -> None:
    fleet = make_fleet()
    fleet.bury_silent(10.0)
    fleet.hear("w-1", 11.0)
    assert not fleet.serves(SLUG)
    fleet.arrive("w-1", CARD, 11.0)
    assert fleet.serves(SLUG)


OTHER = structs.replace(CARD, worker="w-2")


def test_a_worker_stalls_once_in_its_silence_and_long_before_it_is_dead() -> None:
    fleet = make_fleet()
    assert fleet.find_stalled(0.9) == []
    assert fleet.find_stalled(1.0) == ["w-1"]
    assert fleet.find_stalled(1.25) == []
    fleet.hear("w-1", 2.0)
    assert fleet.find_stalled(3.0) == ["w-1"]


def test_while_one_is_stalled_jobs_take_a_detour_to_those_that_are_heard() -> None:
    fleet = make_fleet()
    fleet.arrive("w-2", OTHER, 0.9)
    fleet.arrive("w-3", structs.replace(CARD, worker="w-3", roles=["prefill"]), 0.9)
    assert fleet.detour(SLUG) == ""
    fleet.find_stalled(1.0)
    assert [fleet.detour(SLUG) for _ in range(3)] == ["w-2"] * 3
    assert fleet.detour("another") == ""
    assert fleet.bury_silent(3.5) == ["w-1"]
    assert fleet.detour(SLUG) == "w-2", "what it asked for still stands at the broker"
    fleet.doubt("w-1")
    assert fleet.detour(SLUG) == ""


def test_no_job_takes_a_detour_to_a_worker_that_lost_its_connection() -> None:
    fleet = make_fleet()
    fleet.arrive("w-2", OTHER, 0.9)
    fleet.arrive("w-3", structs.replace(CARD, worker="w-3"), 0.9)
    fleet.find_stalled(1.0)
    fleet.doubt("w-2")
    assert [fleet.detour(SLUG) for _ in range(3)] == ["w-3"] * 3
    fleet.doubt("w-3")
    assert fleet.detour(SLUG) == ""
    fleet.hear("w-2", 1.1)
    assert fleet.detour(SLUG) == "w-2"


def test_when_all_are_stalled_jobs_wait_for_whoever_comes_first() -> None:
    fleet = make_fleet()
    fleet.find_stalled(1.0)
    assert fleet.detour(SLUG) == ""


def test_only_a_worker_that_took_jobs_can_have_left_some_untaken() -> None:
    fleet = make_fleet()
    assert fleet.doubt("w-1")
    assert not fleet.doubt("r-1")
    fleet.leave("w-1")
    assert not fleet.doubt("w-1")


def test_who_waits_in_a_worker_counts_while_it_is_heard() -> None:
    fleet = make_fleet()
    fleet.report("w-1", 0, 1.0)
    fleet.report("w-2", 3, 1.0)
    assert fleet.has_waiting(1.5)
    assert not fleet.has_waiting(1.1 + STALLED_S)
    fleet.hear("w-2", 2.0)
    assert fleet.has_waiting(2.5)
    fleet.doubt("w-2")
    assert not fleet.has_waiting(2.5)
    fleet.report("w-2", 0, 3.0)
    assert not fleet.has_waiting(3.0)
