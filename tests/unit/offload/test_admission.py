"""Admission: what many use is not washed out by what is used once, and conversations are not kept out for that."""

from random import Random

import pytest

from offload.admission import MAX_COUNT, Frequencies
from offload.key import BlockKey, space_of
from offload.slots import Slots
from offload.tier import ORDINARY

SPACE = space_of("model")
NUM_SLOTS = 256


def count_hits(uses: list[int], *, is_selective: bool) -> int:
    """Return how many of these uses a tier answers that stores what it does not have."""
    slots = Slots(NUM_SLOTS, medium="disk", is_selective=is_selective)
    num_hits = 0
    for number in uses:
        key = BlockKey(SPACE, number)
        slots.touch([key])
        loaded = slots.prepare_load([key])
        slots.complete_load(loaded)
        num_hits += len(loaded)
        if (slot := slots.prepare_store(key, 0, ORDINARY, 0.0)) is not None:
            slots.complete_store([slot])
    return num_hits


def hot_among_single_uses(rng: Random) -> list[int]:
    """A hundred blocks used again and again, but each time only after more single uses than there are slots."""
    hot = [rng.getrandbits(64) for _ in range(100)]
    return [each for number in range(1500) for each in (hot[number % 100], *(rng.getrandbits(64) for _ in range(4)))]


def second_turns(rng: Random) -> list[int]:
    """Every block is used twice, with a hundred others between, and never again."""
    numbers = [rng.getrandbits(64) for _ in range(3000)]
    return [each for old, new in zip([*numbers[:100], *numbers], numbers, strict=False) for each in (new, old)]


def test_hot_blocks_survive_a_stream_of_single_uses() -> None:
    uses = hot_among_single_uses(Random(1))
    assert count_hits(uses, is_selective=False) < 50
    assert count_hits(uses, is_selective=True) > 500


def test_second_turns_find_what_the_first_ones_stored() -> None:
    uses = second_turns(Random(2))
    assert count_hits(uses, is_selective=True) >= 0.98 * count_hits(uses, is_selective=False)


@pytest.mark.parametrize("num_slots", [1, 100, 5000])
def test_estimates_are_never_too_low_and_cool_down(num_slots: int) -> None:
    frequencies, rng = Frequencies(num_slots), Random(3)
    for times in (1, 2, 7):
        for _ in range(times):
            frequencies.note(times)
        assert frequencies.estimate(times) >= times
    for _ in range(100):
        frequencies.note(99)
    assert frequencies.estimate(99) == MAX_COUNT
    before = sum(map(sum, frequencies._rows))
    for _ in range(8 * max(64, num_slots)):
        frequencies.note(rng.getrandbits(64))
    assert frequencies.estimate(99) <= MAX_COUNT // 2 + 4
    assert sum(map(sum, frequencies._rows)) < before + 4 * 8 * max(64, num_slots)
