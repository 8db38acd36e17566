from array import array
from collections.abc import Iterable

import pytest

from bus.messages.base import unpack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from components.engines.batching.pool import START, BlockPool


def replay(events: Iterable[KvEvent], known: set[int]) -> set[int]:
    """Apply events as a reader on the bus would."""
    for event in events:
        match event:
            case BlocksStored():
                known |= set(unpack_u64(event.block_hashes))
            case BlocksRemoved():
                known -= set(unpack_u64(event.block_hashes))
            case BlocksCleared():
                known.clear()
    return known


def test_blocks_of_a_released_chain_are_found_again() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.store(START, [11, 12], blocks[:2])
    pool.release(blocks)
    assert pool.match_prefix([11, 12, 13]) == blocks[:2]
    assert pool.match_prefix([12]) == blocks[1:2]
    assert pool.match_prefix([13, 11]) == []
    pool.check([])


def test_free_blocks_are_taken_before_cached_ones_and_the_oldest_chain_goes_first_from_its_end() -> None:
    pool = BlockPool(5)
    old, new = pool.allocate(2), pool.allocate(2)
    pool.store(START, [1, 2], old)
    pool.store(START, [3, 4], new)
    pool.release(old)
    pool.release(new)
    pool.allocate(1)
    assert pool.known_hashes() == {1, 2, 3, 4}
    pool.allocate(1)
    assert pool.known_hashes() == {1, 3, 4}
    pool.allocate(2)
    assert pool.known_hashes() == {3}


def test_shared_blocks_survive_until_the_last_release() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    pool.store(START, [1, 2], blocks)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_available == 0
    assert pool.num_cached(blocks) == 0
    pool.release(blocks)
    assert pool.num_available == pool.num_cached(blocks) == 2
    pool.share(blocks[:1])
    assert pool.num_available == 1
    pool.check([blocks[:1]])


def test_a_hash_that_is_known_already_keeps_its_first_block() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.store(START, [7], first)
    pool.store(START, [7], second)
    pool.release(first)
    pool.release(second)
    assert pool.match_prefix([7]) == first
    pool.check([])
    pool.allocate(1)
    assert pool.known_hashes() == {7}


def test_more_blocks_than_there_are_cannot_be_taken() -> None:
    pool = BlockPool(1)
    pool.allocate(1)
    with pytest.raises((IndexError, KeyError)):
        pool.allocate(1)


def test_discarded_blocks_are_unknown_and_free_but_not_those_that_others_share() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    pool.store(START, [1, 2], blocks[:2])
    pool.share(blocks[:1])
    assert pool.discard(blocks) == blocks[1:]
    assert pool.known_hashes() == {1}
    pool.check([blocks[:1]])


def test_events_of_one_chain_are_one_event() -> None:
    pool = BlockPool(4)
    blocks = array("q", pool.allocate(4))
    pool.store(START, [1, 2], blocks[:2])
    pool.store(2, [3], blocks[2:3])
    pool.store(START, [9], blocks[3:])
    stored = pool.take_events()
    assert [(event.parent_hash, list(unpack_u64(event.block_hashes))) for event in stored if event] == [
        (START, [1, 2, 3]),
        (START, [9]),
    ]
    pool.release(blocks)
    pool.allocate(4)
    (removed,) = pool.take_events()
    assert isinstance(removed, BlocksRemoved)
    assert set(unpack_u64(removed.block_hashes)) == {1, 2, 3, 9}
    assert pool.take_events() == []
    assert replay(stored, set()) == {1, 2, 3, 9}
