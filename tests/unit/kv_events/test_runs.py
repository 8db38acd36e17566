"""Runs of blocks: the books balance whatever comes, and honest chains stay few and long."""

from array import array
from functools import reduce
from operator import xor

from hypothesis import given
from hypothesis import strategies as st

from kv_events.hashing import block_hashes
from kv_events.runs import Run, RunIndex

WORKERS = ("w-a", "w-b")


def column(blocks: list[int]) -> "array[int]":
    return array("Q", blocks)


def check_books(index: RunIndex) -> dict[str, set[int]]:
    """Return what each worker holds, after comparing everything that is kept twice."""
    held: dict[str, set[int]] = {}
    for number, run in index.runs.items():
        assert len(run.blocks) == max(run.held.values())
        assert min(run.held.values()) > 0
        assert all(index.run_of[block] == number for block in run.blocks)
        for worker, blocks in run.held.items():
            assert number in index.holdings[worker].runs
            held.setdefault(worker, set()).update(run.blocks[:blocks])
    assert len(index.run_of) == sum(len(run.blocks) for run in index.runs.values())
    assert held.keys() == index.holdings.keys()
    for worker, holding in index.holdings.items():
        assert (holding.num_blocks, holding.xor) == (len(held[worker]), reduce(xor, held[worker], 0))
        assert len(holding.runs) == sum(worker in run.held for run in index.runs.values())
    return held


HOSTILE = st.tuples(
    st.sampled_from(WORKERS), st.booleans(), st.integers(0, 6), st.lists(st.integers(0, 6), max_size=8).map(column)
)


@given(st.lists(HOSTILE, max_size=25))
def test_impossible_chains_do_not_unbalance_the_books(steps: list[tuple[str, bool, int, "array[int]"]]) -> None:
    """Blocks that follow themselves, come twice, or have several parents."""
    index, model = RunIndex(), {worker: set[int]() for worker in WORKERS}
    for worker, is_store, parent, blocks in steps:
        before = len(model[worker])
        if is_store:
            model[worker] |= set(blocks)
            assert index.store(worker, parent, blocks) == len(model[worker]) - before
        else:
            model[worker] -= set(blocks)
            assert index.remove(worker, blocks) == before - len(model[worker])
        assert check_books(index) == {worker: blocks for worker, blocks in model.items() if blocks}
        index.match(blocks)
    for worker in WORKERS:
        index.clear(worker)
    assert [len(index.run_of), len(index.runs), len(index.holdings)] == [0, 0, 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.lists(st.integers(1, 9), max_size=12))
def test_a_chain_that_grows_and_shrinks_at_its_end_is_one_run(grow: list[int], shrink: list[int]) -> None:
    chain = column(block_hashes(range(sum(grow)), 1, 7))
    index = RunIndex()
    for worker in WORKERS:
        at = 0
        for blocks in grow:
            index.store(worker, chain[at - 1] if at else 0, chain[at : at + blocks])
            at += blocks
    left = len(chain)
    for blocks in shrink:
        index.remove("w-a", chain[max(0, left - blocks) : left][::-1])
        left = max(0, left - blocks)
        assert len(index.runs) == 1
        lengths = {"w-a": left, "w-b": len(chain)}
        assert index.match(chain) == {worker: length for worker, length in lengths.items() if length}
    check_books(index)


def test_a_chain_may_be_evicted_from_its_beginning_or_anywhere() -> None:
    chain = column(block_hashes(range(100), 1, 7))
    index = RunIndex()
    for worker in WORKERS:
        index.store(worker, 0, chain)
    for block in chain[:40]:
        assert index.remove("w-a", column([block])) == 1
    assert index.remove("w-a", column([chain[70], chain[60], chain[60]])) == 2
    assert check_books(index) == {"w-a": {*chain[40:60], *chain[61:70], *chain[71:]}, "w-b": {*chain}}
    assert index.match(chain) == {"w-b": 100}
    index.store("w-a", 0, chain)
    assert index.match(chain) == {"w-a": 100, "w-b": 100}


def test_forks_split_no_run() -> None:
    index = RunIndex()
    trunk = block_hashes(range(20), 1, 7)
    for fork in range(5):
        branch = block_hashes([fork, 1, 2], 1, trunk[4 * fork])
        index.store("w-a", 0, column([*trunk[: 4 * fork + 1], *branch]))
    index.store("w-b", 0, column(trunk))
    check_books(index)
    assert len(index.runs) == 6, "one for each chain, from where it left the others"


@given(st.integers(0, 12), st.integers(1, 12), st.lists(st.integers(0, 30), max_size=6))
def test_a_run_is_followed_as_far_as_it_goes_wherever_chains_left_it_before(
    start: int, length: int, forks: list[int]
) -> None:
    """A run of `length` blocks from `start` on, and chains that leave it at `forks`."""
    tokens = list(range(30))
    run = Run(array("Q", block_hashes(tokens, 1, 7)[start : start + length]), {})
    for fork in forks:
        chain = block_hashes([*tokens[:fork], *([99] * (30 - fork))], 1, 7)
        assert run.follow(chain, start) == max(0, min(fork - start, length))
