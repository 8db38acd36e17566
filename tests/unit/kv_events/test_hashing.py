"""Block hashes: one definition, pinned by values."""

from hypothesis import given
from hypothesis import strategies as st

from kv_events.hashing import block_hashes, salt_hash

ROOT = salt_hash("busway-tiny")


def test_values_are_pinned() -> None:
    """Stored blocks and running peers of another version hold these very numbers."""
    assert ROOT == 18396426954597374802
    assert block_hashes(range(8), 4, ROOT) == [2283118821184879268, 6332900612164302378]


def test_only_full_blocks_count() -> None:
    assert block_hashes([1, 2, 3], 4, ROOT) == []
    assert len(block_hashes(range(11), 4, ROOT)) == 2


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=40), st.integers(0, 7))
def test_a_hash_depends_on_all_before_it(tokens: list[int], at: int) -> None:
    changed = tokens.copy()
    changed[at] ^= 1
    ours, theirs = block_hashes(tokens, 4, ROOT), block_hashes(changed, 4, ROOT)
    first = at // 4
    assert ours[:first] == theirs[:first]
    assert all(a != b for a, b in zip(ours[first:], theirs[first:], strict=True))


def test_the_chain_can_be_continued() -> None:
    tokens = list(range(64))
    whole = block_hashes(tokens, 16, ROOT)
    assert block_hashes(tokens[32:], 16, whole[1]) == whole[2:]


def test_model_and_salt_separate() -> None:
    assert len({salt_hash("a"), salt_hash("b"), salt_hash("a", "b"), salt_hash("ab"), salt_hash("a", "tenant")}) == 5
