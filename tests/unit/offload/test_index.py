"""The index: what a dict would say, whatever comes and goes, and however hashes collide."""

from hypothesis import given
from hypothesis import strategies as st

from offload.index import BlockIndex
from offload.key import BlockKey, space_of

SPACES = [space_of("a"), space_of("a", "tenant")]
NUM_SLOTS = 12

keys = st.builds(BlockKey, st.sampled_from(SPACES), st.integers(0, 3) | st.sampled_from([32, 64, 2**64 - 1, 31, 63]))


@given(st.lists(keys, max_size=80))
def test_it_says_what_a_dict_says(steps: list[BlockKey]) -> None:
    """Each step adds the block, or removes it if it is there."""
    index, known = BlockIndex(NUM_SLOTS), dict[BlockKey, int]()
    free = list(range(NUM_SLOTS))
    for key in steps:
        if (slot := known.pop(key, None)) is not None:
            index.remove(slot)
            free.append(slot)
        elif free:
            known[key] = free.pop(0)
            index.insert(key, key.block_hash ^ 1, known[key])
        assert len(index) == len(known)
        assert all(index.find(each) == known.get(each) for each in steps)
        assert all(index.key_at(slot) == each for each, slot in known.items())
        assert all(index.parents[slot] == each.block_hash ^ 1 for each, slot in known.items())


def test_all_slots_can_be_taken_and_a_missing_block_is_still_found_to_be_missing() -> None:
    index = BlockIndex(1000)
    for slot in range(1000):
        index.insert(BlockKey(SPACES[0], slot * 7919), 0, slot)
    assert index.find(BlockKey(SPACES[1], 0)) is None
    assert index.find(BlockKey(SPACES[0], 1)) is None
