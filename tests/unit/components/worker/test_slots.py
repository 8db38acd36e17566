"""Slots: what may be open is bounded by what is free, and bursts need few grants."""

from components.worker.slots import GRANT_SIZE, Slots


def test_every_lane_is_granted_what_is_free() -> None:
    slots = Slots(4, 3)
    assert slots.top_up() == [(0, 4), (1, 4), (2, 4)]
    assert slots.top_up() == []


def test_one_lane_never_has_more_open_than_there_are_slots() -> None:
    slots = Slots(100, 1)
    open_now = 0
    for _ in range(100):
        for _, target in slots.top_up():
            open_now = max(open_now, target)
        assert open_now <= slots.free
        assert slots.arrive(0)
        slots.take()
        open_now -= 1
    assert slots.free == 0
    assert slots.top_up() == []


def test_a_burst_of_jobs_costs_few_grants() -> None:
    slots = Slots(1024, 3)
    slots.top_up()
    num_grants = 0
    for _ in range(512):
        slots.arrive(1)
        slots.take()
        num_grants += len(slots.top_up())
    assert num_grants == 512 // (GRANT_SIZE // 2)


def test_a_slot_that_comes_free_is_granted_again() -> None:
    slots = Slots(1, 2)
    slots.top_up()
    assert slots.arrive(0)
    slots.take()
    assert slots.top_up() == []
    assert not slots.arrive(1), "the other lane's delivery is surplus"
    slots.release()
    assert slots.top_up() == [(0, 1), (1, 1)]


def test_deliveries_that_were_never_granted_do_not_upset_the_count() -> None:
    slots = Slots(2, 1)
    for _ in range(5):
        slots.arrive(0)
    assert slots.top_up() == [(0, 2)]
