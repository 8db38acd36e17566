"""A tier's books: only what is complete is found, what is pinned stays, nothing leaks, whatever the order of things."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from bus.messages.base import unpack_u64
from bus.messages.kv import BlocksRemoved, BlocksStored
from offload.key import BlockKey, space_of
from offload.slots import MAX_PINNED_PART, Slots
from offload.tier import ORDINARY, Presence, Retention

SPACE = space_of("model")
NUM_SLOTS = 6


def key(number: int) -> BlockKey:
    return BlockKey(SPACE, number)


def store(slots: Slots, *numbers: int, retention: Retention = ORDINARY, now: float = 0.0) -> list[int]:
    """Store blocks that follow each other; return those for which there was room."""
    stored, parent = [], 0
    for number in numbers:
        slot = slots.prepare_store(key(number), parent, retention, now)
        if slot is not None:
            stored.append(slot)
        parent = number
    slots.complete_store(stored)
    return stored


def present(slots: Slots, *numbers: int) -> list[int]:
    found = slots.lookup([key(number) for number in numbers])
    return [number for number, presence in zip(numbers, found, strict=True) if presence is Presence.HIT]


class Life(RuleBasedStateMachine):
    """Stores and loads that begin, end, fail and overlap in any order."""

    filling = Bundle("filling")
    loading = Bundle("loading")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1.0
        self.told: set[int] = set()
        self.busy: dict[int, int] = {}
        self.open: set[int] = set()

        self.slots = self.make()

    def make(self) -> Slots:
        return Slots(NUM_SLOTS, policy="s3fifo", medium="host", is_selective=True)

    @rule(target=filling, number=st.integers(1, 12), pin_s=st.sampled_from([0.0, 5.0]), priority=st.integers(-1, 1))
    def prepare_store(self, number: int, pin_s: float, priority: int) -> object:
        retention = Retention(priority, self.now + pin_s if pin_s else 0.0)
        slot = self.slots.prepare_store(key(number), number - 1, retention, self.now)
        if slot is None:
            return multiple()
        assert slot not in self.busy, "a slot that is being read was handed out"
        assert slot not in self.open, "a slot was handed out twice"
        self.open.add(slot)
        return slot

    @rule(slot=consumes(filling))
    def complete_store(self, slot: int) -> None:
        self.open.remove(slot)
        self.slots.complete_store([slot])

    @rule(slot=consumes(filling))
    def abort_store(self, slot: int) -> None:
        self.open.remove(slot)
        self.slots.abort_store([slot])

    @rule(target=loading, numbers=st.lists(st.integers(1, 12), max_size=3))
    def prepare_load(self, numbers: list[int]) -> object:
        loading = self.slots.prepare_load([key(number) for number in numbers])
        assert [self.slots.key_at(slot) for slot in loading] == [key(number) for number in numbers[: len(loading)]]
        for slot in loading:
            self.busy[slot] = self.busy.get(slot, 0) + 1
        return loading

    @rule(loading=consumes(loading))
    def complete_load(self, loading: list[int]) -> None:
        for slot in loading:
            self.busy[slot] -= 1
            if not self.busy[slot]:
                del self.busy[slot]
        self.slots.complete_load(loading)

    @rule(number=st.integers(1, 12))
    def remove(self, number: int) -> None:
        self.slots.remove([key(number)])
        assert present(self.slots, number) == []

    @rule(number=st.integers(1, 12), pin_s=st.floats(0, 9), priority=st.integers(-1, 1))
    def retain(self, number: int, pin_s: float, priority: int) -> None:
        self.slots.retain([key(number)], Retention(priority, self.now + pin_s), self.now)

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def events_tell_what_is_here(self) -> None:
        for event in self.slots.take_events():
            if isinstance(event, BlocksStored):
                hashes = set(unpack_u64(event.block_hashes))
                assert not hashes & self.told
                self.told |= hashes
            elif isinstance(event, BlocksRemoved):
                self.told -= set(unpack_u64(event.block_hashes))
        assert set(present(self.slots, *range(1, 13))) == self.told

    @invariant()
    def pins_are_bounded(self) -> None:
        assert self.slots.num_pinned <= MAX_PINNED_PART * NUM_SLOTS

    def teardown(self) -> None:
        """When all has ended and time has passed, every slot can be filled again."""
        self.slots.abort_store(self.open)
        for slot, count in self.busy.items():
            for _ in range(count):
                self.slots.complete_load([slot])
        for number in range(1, 13):
            self.slots.remove([key(number)])
        assert len(self.slots) == 0
        assert len(store(self.slots, *range(101, 101 + NUM_SLOTS), now=self.now + 1000)) == NUM_SLOTS


class PlainLife(Life):
    def make(self) -> Slots:
        return Slots(NUM_SLOTS, medium="host")


TestS3FifoSelective = Life.TestCase
TestLru = PlainLife.TestCase
TestS3FifoSelective.settings = TestLru.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
def test_the_end_of_a_chain_leaves_before_its_beginning(policy: str) -> None:
    slots = Slots(4, policy=policy, medium="disk")
    store(slots, 1, 2, 3, 4)
    store(slots, 11, 12)
    assert present(slots, 1, 2, 3, 4) == [1, 2]


def test_what_was_used_again_survives_a_flood_of_single_uses() -> None:
    slots = Slots(20, policy="s3fifo", medium="host")
    store(slots, 1, 2, 3)
    slots.touch([key(1), key(2), key(3)])
    for number in range(100, 400):
        store(slots, number * 0x9E3779B97F4A7C15 % 2**64)
    assert present(slots, 1, 2, 3) == [1, 2, 3]


def test_a_pinned_prefix_lives_through_a_flood_until_its_time_is_over() -> None:
    slots = Slots(8, medium="host")
    store(slots, 1, 2, 3, retention=Retention(pinned_until=60.0))
    store(slots, *range(10, 30), now=59.0)
    assert present(slots, 1, 2, 3) == [1, 2, 3]
    store(slots, *range(30, 50), now=61.0)
    assert present(slots, 1, 2, 3) == []


def test_a_pin_that_comes_later_counts_as_well() -> None:
    slots = Slots(8, medium="host")
    store(slots, 1, 2)
    slots.retain([key(1), key(2)], Retention(pinned_until=60.0), 0.0)
    store(slots, *range(10, 30))
    assert present(slots, 1, 2) == [1, 2]


def test_a_pin_that_comes_while_a_block_is_loaded_counts_as_well() -> None:
    slots = Slots(8, medium="host")
    taken = [slots.prepare_store(key(number), number - 1, ORDINARY, 0.0) for number in (1, 2)]
    slots.retain([key(1), key(2)], Retention(3, 60.0), 0.0)
    slots.complete_store([slot for slot in taken if slot is not None])
    store(slots, *range(10, 30))
    assert present(slots, 1, 2) == [1, 2]
    assert slots.retention_at(taken[0] or 0) == Retention(3, 60.0)


def test_a_filter_lets_in_what_is_pinned_as_long_as_there_is_room_for_pins() -> None:
    slots = Slots(64, medium="disk", is_selective=True)
    for _ in range(40):
        for number in range(100, 200):  # in circles, one and a half times as many as there is room for
            slots.touch([key(number)])
            store(slots, number)
    assert slots._admission is not None
    assert slots._admission.is_filtering
    store(slots, 1)
    store(slots, *range(2, 40), retention=Retention(pinned_until=60.0))
    assert present(slots, 1, *range(2, 34)) == list(range(2, 34))


def test_low_priority_leaves_first_and_high_priority_has_no_more_than_its_part() -> None:
    slots = Slots(8, medium="host")
    store(slots, 1, 2, retention=Retention(priority=-5))
    store(slots, 3, 4, retention=Retention(priority=5))
    store(slots, 5, 6, 7, 8, 9, 10)
    assert present(slots, 1, 2, 3, 4) == [3, 4]
    for number in range(20, 60):
        store(slots, number, retention=Retention(priority=100))
    assert len(present(slots, *range(20, 60))) == 5


def test_prolonging_a_pin_again_and_again_takes_no_memory() -> None:
    slots = Slots(4, medium="host")
    store(slots, 1)
    for until in range(1, 10_000):
        slots.retain([key(1)], Retention(pinned_until=float(until)), 0.0)
    assert len(slots._expiries) < 100


def test_a_restored_tier_goes_on_where_it_was() -> None:
    slots = Slots(4, medium="disk")
    for slot, number in ((2, 1), (0, 2)):
        slots.restore(slot, key(number), number - 1, ORDINARY)
    slots.end_restore()
    assert slots.prepare_load([key(1), key(2)]) == [2, 0]
    assert slots.take_events() == [BlocksStored(0, (1).to_bytes(8, "little") + (2).to_bytes(8, "little"), "disk")]
    assert sorted(store(slots, 3, 4)) == [1, 3]
