"""Columns of hashes: the quick ways give what the plain ones give."""

from array import array
from functools import reduce
from itertools import takewhile
from operator import eq, xor

from hypothesis import given
from hypothesis import strategies as st

from kv_events.columns import common_length, xor_of

BLOCKS = st.lists(st.integers(0, 2**64 - 1), max_size=40)
FEW = st.lists(st.integers(0, 1), min_size=1, max_size=8)


@given(BLOCKS)
def test_xor(blocks: list[int]) -> None:
    assert xor_of(array("Q", blocks)) == reduce(xor, blocks, 0)


@given(FEW, FEW, st.integers(0, 7), st.integers(0, 7))
def test_common_length(ours: list[int], theirs: list[int], first: int, at: int) -> None:
    first, at = min(first, len(ours)), min(at, len(theirs))
    plain = sum(takewhile(bool, map(eq, ours[first:], theirs[at:])))
    assert common_length(array("Q", ours), first, array("Q", theirs), at) == plain
