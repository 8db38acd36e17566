"""A worker is alive as long as it is heard; one without a card gets less patience."""

from bus.messages.fleet import WorkerCard
from bus.subjects import slug
from frontend.fleet import Fleet

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
