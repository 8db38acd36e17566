"""Shared tiers: what is told is known, also in pieces, until it is told to be gone or fades."""

from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Malformed
from bus.messages.base import pack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored
from kv_events.hashing import block_hashes
from kv_events.index import MAX_SHARED_TIERS, PrefixIndex
from kv_events.shared import SharedBlocks, reach

CHAIN = block_hashes(range(40), 1, 7)


def column(first: int, end: int) -> "array[int]":
    return array("Q", CHAIN[first:end])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 39), st.integers(0, 39)), max_size=30))
def test_it_equals_a_set(steps: list[tuple[bool, int, int]]) -> None:
    blocks, model = SharedBlocks(1000), set[int]()
    for is_stored, one, other in steps:
        first, end = min(one, other), max(one, other) + 1
        if is_stored:
            blocks.store(CHAIN[first - 1] if first else 0, column(first, end))
            model |= set(range(first, end))
        else:
            blocks.remove(column(first, end))
            model -= set(range(first, end))
    spans = blocks.spans(CHAIN)
    assert {at for first, end in spans for at in range(first, end)} == model
    assert all(end < later for (_, end), (later, _) in pairwise(spans)), "in order, apart"


NUMBER = st.integers(0, 9)


@given(
    st.lists(st.tuples(st.booleans(), NUMBER, st.lists(NUMBER, max_size=6)), max_size=20), st.lists(NUMBER, max_size=8)
)
def test_chains_in_circles_and_blocks_that_follow_themselves_are_no_more_than_a_set(
    steps: list[tuple[bool, int, list[int]]], asked: list[int]
) -> None:
    blocks, model = SharedBlocks(1000), set[int]()
    for is_stored, parent, told in steps:
        if is_stored:
            blocks.store(parent, array("Q", told))
            model |= set(told)
        else:
            blocks.remove(array("Q", told))
            model -= set(told)
        assert {number for number in range(10) if blocks.has(number)} == model
    assert all(0 <= first < end <= len(asked) for first, end in blocks.spans(asked))


def test_what_is_not_told_again_fades() -> None:
    blocks = SharedBlocks(40)
    blocks.store(0, column(0, 15))
    blocks.store(0, array("Q", range(1, 11)))
    assert blocks.spans(CHAIN) == [(0, 15)]
    blocks.store(0, column(0, 5))
    blocks.store(0, array("Q", range(100, 116)))
    assert blocks.spans(CHAIN) == [(0, 5)]
    assert len(blocks) <= 40
    blocks.store(0, array("Q", range(1000, 2000)))
    assert len(blocks) <= 40, "a message with more than there is room for is cut"


@pytest.mark.parametrize(
    ("start", "spans", "end"),
    [(0, [], 0), (0, [(0, 3), (5, 9)], 3), (5, [(0, 3), (5, 9)], 9), (2, [(0, 3), (3, 9)], 9), (4, [(0, 3)], 4)],
)
def test_a_prefix_reaches_as_far_as_there_is_no_hole(start: int, spans: list[tuple[int, int]], end: int) -> None:
    assert reach(start, spans) == end


def test_the_index_keeps_shared_tiers_apart_from_workers() -> None:
    index = PrefixIndex()
    index.apply_shared("redis-1", [BlocksStored(0, pack_u64(CHAIN[:4]), "remote")])
    index.apply_shared("s3-1", [BlocksStored(CHAIN[1], pack_u64(CHAIN[2:8]), "remote")])
    assert index.match(CHAIN) == {}
    assert index.match_shared(CHAIN) == {"redis-1": [(0, 4)], "s3-1": [(2, 8)]}
    index.apply_shared("redis-1", [BlocksRemoved(pack_u64(CHAIN[:1]), "remote")])
    index.apply_shared("s3-1", [BlocksCleared("remote")])
    assert index.match_shared(CHAIN) == {"redis-1": [(1, 4)]}
    with pytest.raises(Malformed):
        index.apply_shared("redis-1", [BlocksStored(0, bytes(7), "remote")])
    for number in range(MAX_SHARED_TIERS):
        index.apply_shared(f"x-{number}", [])
    assert index.match_shared(CHAIN) == {}
    index.apply_shared("x-1", [BlocksStored(0, pack_u64(CHAIN[:4]), "remote")])
    index.forget_shared()
    assert index.match_shared(CHAIN) == {}
