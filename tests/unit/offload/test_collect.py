"""What is collected: the old first, then whatever would go soonest, until all quotas hold."""

from offload.collect import find_garbage
from offload.key import BlockKey, space_of
from offload.store import Listed

A, B = space_of("f", "a"), space_of("f", "b")
NOW = 1000.0


def listed(space: bytes, number: int, expires_at: float, num_bytes: int = 10) -> Listed:
    return Listed(BlockKey(space, number), num_bytes, expires_at)  # type: ignore[arg-type]


def numbers(garbage: list[BlockKey]) -> list[int]:
    return [key.block_hash for key in garbage]


def test_only_what_is_old_goes_without_quotas() -> None:
    blocks = [listed(A, 1, NOW), listed(A, 2, NOW + 1), listed(A, 3, float("inf")), listed(B, 4, NOW - 5)]
    assert numbers(find_garbage(blocks, NOW, max_bytes=0, max_space_bytes=0)) == [1, 4]


def test_beyond_a_quota_the_soonest_to_expire_go_first() -> None:
    blocks = [listed(A, number, NOW + 10 - number) for number in range(5)]
    assert numbers(find_garbage(blocks, NOW, max_bytes=25, max_space_bytes=0)) == [4, 3, 2]
    assert numbers(find_garbage(blocks, NOW, max_bytes=50, max_space_bytes=0)) == []


def test_each_space_has_its_own_quota_before_all_share_one() -> None:
    blocks = [*[listed(A, number, NOW + number) for number in range(1, 5)], listed(B, 9, NOW + 2)]
    assert numbers(find_garbage(blocks, NOW, max_bytes=0, max_space_bytes=20)) == [1, 2]
    assert numbers(find_garbage(blocks, NOW, max_bytes=20, max_space_bytes=20)) == [1, 2, 9]
    assert numbers(find_garbage([], NOW, max_bytes=1, max_space_bytes=1)) == []
