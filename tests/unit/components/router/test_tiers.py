"""What loading saves: pieces in their order, fixed and per-token costs, tiers that are not told of."""

import pytest

from bus.messages.fleet import TierRate
from components.router.tiers import Load, best_load, find_loads
from kv_events.index import Overlap

HOST = TierRate("host", "", 0.0, 1e-6)
DISK = TierRate("disk", "", 0.001, 1e-5)
REDIS = TierRate("remote", "redis-1", 0.002, 2e-5)
S3 = TierRate("remote", "s3-1", 0.05, 1e-4)


def test_pieces_follow_each_other_through_the_tiers() -> None:
    shared = {"redis-1": [(0, 6), (9, 12)], "s3-1": [(5, 10)], "other": [(0, 99)]}
    rates = [S3, REDIS, DISK, HOST]
    loads = find_loads(Overlap(1, 3, 4, 4), shared, rates, 16)
    assert loads == (
        Load(2 * 16, HOST.token_s, HOST.latency_s),
        Load(1 * 16, DISK.token_s, DISK.latency_s),
        Load(2 * 16, REDIS.token_s, REDIS.latency_s),
        Load(4 * 16, S3.token_s, S3.latency_s),
    )


def test_nothing_counts_behind_a_tier_that_cannot_be_loaded_from() -> None:
    assert find_loads(Overlap(1, 3, 4, 4), {"redis-1": [(4, 9)]}, [DISK, REDIS], 16) == ()
    assert find_loads(Overlap(0, 0, 0, 0), {"redis-1": [(1, 9)]}, [REDIS], 16) == ()
    assert find_loads(Overlap(0, 0, 0, 0), {"redis-1": [(0, 9)]}, [], 16) == ()


@pytest.mark.parametrize(
    ("loads", "saved_s", "tokens"),
    [
        ((), 0.0, 0),
        ((Load(100, 0.25, 0.0),), 75.0, 100),
        ((Load(100, 1.0, 0.0),), 0.0, 0),
        ((Load(100, 0.25, 75.0),), 0.0, 0),
        ((Load(100, 0.25, 25.0), Load(100, 2.0, 0.0)), 50.0, 100),
        ((Load(100, 1.5, 0.0), Load(100, 0.25, 0.0)), 25.0, 200),
        ((Load(100, 1.5, 0.0), Load(100, 0.75, 0.0)), 0.0, 0),
    ],
)
def test_as_much_is_loaded_as_pays(loads: tuple[Load, ...], saved_s: float, tokens: int) -> None:
    assert best_load(loads, 1.0) == (pytest.approx(saved_s), tokens)
