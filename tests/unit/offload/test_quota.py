"""Quotas: what was stored within one time counts, in all and for each cache salt."""

from offload.quota import MAX_SPACES, NUM_SLOTS, Quota

KEEP_S = 1600.0


def test_nothing_is_bounded_without_bounds() -> None:
    quota = Quota(0, 0, KEEP_S)
    quota.note(b"a", 2**50, 0.0, 0.0)
    assert quota.room(b"a", 0.0) is None


def test_the_tighter_bound_counts() -> None:
    quota = Quota(1000, 400, KEEP_S)
    quota.note(b"a", 300, 0.0, 0.0)
    assert quota.room(b"a", 0.0) == 100
    assert quota.room(b"b", 0.0) == 400
    quota.note(b"b", 400, 0.0, 0.0)
    quota.note(b"c", 250, 0.0, 0.0)
    assert quota.room(b"d", 0.0) == 50
    assert quota.room(b"b", 0.0) == 0
    quota.note(b"b", 10_000, 0.0, 0.0)
    assert quota.room(b"d", 0.0) == 0, "others may have stored more than there was room for"


def test_what_has_left_counts_no_more() -> None:
    quota = Quota(0, 100, KEEP_S)
    quota.note(b"a", 60, 0.0, 0.0)
    quota.note(b"a", 40, KEEP_S / 2, KEEP_S / 2)
    assert quota.room(b"a", KEEP_S) == 0, "not before all of it has left"
    assert quota.room(b"a", KEEP_S * (1 + 2 / NUM_SLOTS)) == 60
    assert quota.room(b"a", 2 * KEEP_S) == 100
    assert quota.used(2 * KEEP_S) == {}


def test_very_many_spaces_take_bounded_memory_and_still_count() -> None:
    quota = Quota(2 * MAX_SPACES, 1, KEEP_S)
    for number in range(MAX_SPACES + 100):
        quota.note(number.to_bytes(4, "little"), 1, 0.0, 0.0)
    assert len(quota.used(0.0)) <= MAX_SPACES + 1
    assert Quota.room(quota, b"new", 0.0) == 1
    assert sum(quota.used(0.0).values()) == MAX_SPACES + 100


def test_what_was_stored_before_we_came_counts_for_the_time_that_is_left_of_it() -> None:
    quota, now = Quota(100, 0, KEEP_S), 10 * KEEP_S
    for at, num_bytes in ((now, 1), (now - KEEP_S / 2, 20), (now - 2 * KEEP_S, 50), (now + 1e9, 4), (0.0, 50)):
        quota.note(b"a", num_bytes, at, now)
    assert quota.room(b"a", now) == 75
    assert quota.room(b"a", now + KEEP_S * 0.7) == 95
