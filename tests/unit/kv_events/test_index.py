"""The prefix index agrees with a dict of sets, whatever workers say and in whatever order."""

from functools import reduce
from operator import xor
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Malformed
from bus.messages.base import pack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, Tier
from kv_events.hashing import block_hashes
from kv_events.index import Overlap, PrefixIndex

TIERS: tuple[Tier, ...] = get_args(Tier)
WORKERS = ("w-a", "w-b", "w-c")
CHAINS = [
    block_hashes([*range(shared), *range(100 * k, 100 * k + 8 - shared)], 1, 7) for k, shared in enumerate((0, 3, 6))
]
Model = dict[tuple[str, Tier], set[int]]


def stored(blocks: list[int], parent: int = 0, tier: Tier = "device") -> BlocksStored:
    return BlocksStored(parent, pack_u64(blocks), tier)


def removed(blocks: list[int], tier: Tier = "device") -> BlocksRemoved:
    return BlocksRemoved(pack_u64(blocks), tier)


def match_naively(model: Model, chain: list[int]) -> dict[str, Overlap]:
    found = {}
    for worker in WORKERS:
        counted, lengths = set[int](), []
        for tier in TIERS:
            counted |= model.get((worker, tier), set())
            lengths.append(next((at for at, block in enumerate(chain) if block not in counted), len(chain)))
        if lengths[-1]:
            found[worker] = Overlap(*lengths)
    return found


@st.composite
def events(draw: st.DrawFn) -> KvEvent:
    tier = draw(st.sampled_from(("device", "device", "device", *TIERS)))
    chain = draw(st.sampled_from(CHAINS))
    match draw(st.sampled_from("ssssrrc")):
        case "s":
            first = draw(st.sampled_from((0, 0, 1, 4)))
            return stored(chain[first : draw(st.integers(first, 8))], chain[first - 1] if first else 0, tier)
        case "r":
            return removed(draw(st.lists(st.sampled_from([*chain, 99]), max_size=4)), tier)
        case _:
            return BlocksCleared(tier)


def apply_naively(model: Model, worker: str, event: KvEvent) -> None:
    blocks = model.setdefault((worker, event.tier), set())
    match event:
        case BlocksStored():
            blocks |= set(memoryview(event.block_hashes).cast("Q"))
        case BlocksRemoved():
            blocks -= set(memoryview(event.block_hashes).cast("Q"))
        case BlocksCleared():
            blocks.clear()


def check(index: PrefixIndex, model: Model) -> None:
    for chain in CHAINS:
        for query in (chain, chain[:3]):
            overlaps = match_naively(model, query)
            assert index.match(query) == overlaps
            on_devices = {worker: overlap.device for worker, overlap in overlaps.items() if overlap.device}
            assert index.match_device(query) == on_devices
    assert index.has_tiers == any(blocks for (_, tier), blocks in model.items() if tier != "device")
    assert len(index) == sum(map(len, model.values()))
    for worker in WORKERS:
        device = model.get((worker, "device"), set())
        assert index.digest(worker) == (len(device), reduce(xor, device, 0))
        for tier in TIERS:
            assert index.num_blocks(worker, tier) == len(model.get((worker, tier), ()))


STEPS = st.lists(st.tuples(st.sampled_from(WORKERS), st.lists(events(), min_size=1, max_size=4), st.integers(0, 9)))


@given(STEPS)
def test_it_equals_a_dict_of_sets(steps: list[tuple[str, list[KvEvent], int]]) -> None:
    index, model = PrefixIndex(), Model()
    for worker, batch, luck in steps:
        index.apply(worker, batch)
        for event in batch:
            apply_naively(model, worker, event)
        if luck == 0:
            index.remove_worker(worker)
            model = {key: blocks for key, blocks in model.items() if key[0] != worker}
        elif luck == 1:
            model = {key: blocks for key, blocks in model.items() if key[0] != worker}
            model[worker, "host"] = set(CHAINS[0][2:5])
            index.replace(worker, [stored(CHAINS[0][2:5], CHAINS[0][1], "host")])
    check(index, model)
    for worker in WORKERS:
        index.remove_worker(worker)
    assert not index.workers()
    assert not any(tier.run_of or tier.runs or tier.holdings for tier in index._tiers.values())


def test_an_empty_chain_and_an_unknown_one_match_nobody() -> None:
    index = PrefixIndex()
    index.apply("w-a", [stored([1, 2])])
    assert index.match([]) == {}
    assert index.match([2 + 2]) == {}


def test_a_hole_ends_the_prefix_until_it_is_filled() -> None:
    chain = block_hashes(range(100), 1, 7)
    index = PrefixIndex()
    index.apply("w-a", [stored(chain)])
    assert index.match(chain) == {"w-a": Overlap(100, 100, 100, 100)}
    index.apply("w-a", [removed([chain[41]])])
    assert index.match(chain)["w-a"].device == 41
    index.apply("w-a", [stored([chain[41]], chain[40])])
    assert index.match(chain)["w-a"].device == 100


def test_lower_tiers_lengthen_the_prefix_in_their_order() -> None:
    chain = block_hashes(range(8), 1, 7)
    index = PrefixIndex()
    index.apply("w-a", [stored(chain[:2]), stored(chain[2:4], chain[1], "host"), stored(chain[5:], chain[4], "remote")])
    assert index.match(chain) == {"w-a": Overlap(2, 4, 4, 4)}
    index.apply("w-a", [stored([chain[4]], chain[3], "disk")])
    assert index.match(chain) == {"w-a": Overlap(2, 4, 5, 8)}
    index.apply("w-a", [BlocksCleared()])
    assert index.match(chain) == {}


@pytest.mark.parametrize("size", [1, 7, 9, 65])
def test_a_broken_column_is_malformed_and_keeps_what_came_before(size: int) -> None:
    index = PrefixIndex()
    for broken in (BlocksStored(0, bytes(size)), BlocksRemoved(bytes(size))):
        with pytest.raises(Malformed):
            index.apply("w-a", [stored([1, 2]), broken, stored([3])])
    assert index.digest("w-a") == (2, 1 ^ 2)


def test_a_full_index_leaves_out_what_comes_and_says_whose() -> None:
    index = PrefixIndex(max_blocks=6)
    index.apply("w-a", [stored([1, 2, 3, 4])])
    index.apply("w-b", [stored([1, 2, 3, 4])])
    assert index.match([1, 2, 3, 4]) == {"w-a": Overlap(4, 4, 4, 4), "w-b": Overlap(2, 2, 2, 2)}
    assert [index.is_truncated(worker) for worker in WORKERS] == [False, True, False]
    index.remove_worker("w-a")
    index.replace("w-b", [stored([1, 2, 3, 4, 5, 6])])
    assert not index.is_truncated("w-b")
    index.replace("w-b", [stored([1, 2, 3, 4]), stored([5, 6, 7, 8], 4)])
    assert index.is_truncated("w-b")
    assert len(index) == 6
