"""What one worker holds: a hole in a chain is noticed when it appears and when it closes."""

from functools import reduce
from operator import xor

from hypothesis import given
from hypothesis import strategies as st

from kv_events.held import HeldBlocks

# A forest, by parent: two prompts, forks at 1 and 3, and 0 as the root.
PARENTS = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 3, 7: 6, 8: 1, 9: 8, 10: 0, 11: 10, 12: 11}


def chain_to(block: int) -> list[int]:
    chain = []
    while block:
        chain.append(block)
        block = PARENTS[block]
    return chain[::-1]


def part_of(chain: list[int], skip: int) -> tuple[int, list[int]]:
    """Return a parent and the rest of the chain below it, at least one block."""
    first = min(skip, len(chain) - 1)
    return (chain[first - 1] if first else 0), chain[first:]


def has_hole(blocks: set[int]) -> bool:
    return any(PARENTS[block] and PARENTS[block] not in blocks for block in blocks)


STORE = st.tuples(st.just("store"), st.sampled_from(sorted(PARENTS)), st.integers(0, 5))
DISCARD = st.tuples(st.just("discard"), st.lists(st.sampled_from(sorted(PARENTS)), max_size=6), st.just(0))


@given(st.lists(STORE | DISCARD, max_size=30))
def test_it_is_a_set_that_knows_its_holes(steps: list[tuple[str, int | list[int], int]]) -> None:
    held, model = HeldBlocks(), set[int]()
    for kind, what, skip in steps:
        if isinstance(what, int):
            parent, chain = part_of(chain_to(what), skip)
            added = held.add(parent, chain)
            assert set(added) == set(chain) - model
            model |= set(added)
        else:
            assert kind == "discard"
            removed = held.discard(what)
            assert set(removed) == set(what) & model
            assert len(removed) == len(set(removed))
            model -= set(removed)
        assert held.parents.keys() == model
        assert held.xor == reduce(xor, model, 0)
        assert held.is_whole is not has_hole(model)
    held.discard(sorted(model))
    assert not any((held.parents, held.xor, held._leaves, held._forks, held._missing))


@given(
    st.lists(st.sampled_from(sorted(PARENTS)), max_size=12),
    st.lists(STORE | DISCARD, max_size=20),
)
def test_it_is_whole_again_when_the_blocks_of_a_snapshot_are_gone(
    snapshot: list[int], steps: list[tuple[str, int | list[int], int]]
) -> None:
    held, model, unlinked = HeldBlocks(), set[int](), set[int]()
    unlinked |= set(held.add_unlinked(snapshot))
    model |= unlinked
    for _, what, skip in steps:
        if isinstance(what, int):
            model |= set(held.add(*part_of(chain_to(what), skip)))
        else:
            removed = set(held.discard(what))
            model -= removed
            unlinked -= removed
        assert held.parents.keys() == model
        assert held.is_whole is not (bool(unlinked) or has_hole(model))
    held.discard(sorted(model))
    assert not any((held.parents, held.xor, held._leaves, held._forks, held._missing))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=6)), max_size=30))
def test_impossible_chains_leave_nothing_behind(steps: list[tuple[bool, int, list[int]]]) -> None:
    """Blocks that are their own parents, cycles, several parents: books stay balanced."""
    held, model = HeldBlocks(), set[int]()
    for is_store, parent, blocks in steps:
        if is_store:
            model |= set(held.add(parent, blocks))
        else:
            model -= set(held.discard(blocks))
        assert held.parents.keys() == model
        assert held.xor == reduce(xor, model, 0)
