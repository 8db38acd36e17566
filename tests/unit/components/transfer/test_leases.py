"""Leases: a seal says so for exactly as long as a lease lasts, and whatever ends one is told once."""

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from components.transfer.contract import Ending
from components.transfer.leases import LEASE_LIMIT_S, Leases


def _leases(num_slots: int = 4, lease_s: float = 10.0) -> tuple[Leases, list[int]]:
    seals = [0] * num_slots
    numbers = count(1)
    return Leases(seals, lease_s=lease_s, draw=lambda: next(numbers)), seals


def _grant(leases: Leases, endings: list[Ending], now: float = 0.0) -> int:
    lease = leases.grant(endings.append, now)
    assert lease is not None
    return lease.id


def test_a_seal_shows_its_lease_until_it_ends() -> None:
    leases, seals = _leases()
    endings: list[Ending] = []
    number = _grant(leases, endings)
    assert seals.count(number) == 1
    assert leases.end(number, "released")
    assert endings == ["released"]
    assert seals == [0, 0, 0, 0]
    assert not leases.end(number, "released"), "ends are told once"
    assert endings == ["released"]


def test_the_seal_is_broken_before_the_end_is_told() -> None:
    leases, seals = _leases()
    seen: list[list[int]] = []
    lease = leases.grant(lambda _: seen.append(list(seals)), 0.0)
    assert lease is not None
    leases.end(lease.id, "withdrawn")
    assert seen == [[0, 0, 0, 0]], "whoever reads between would trust blocks that are not kept any more"


def test_a_lease_expires_unless_it_is_renewed() -> None:
    leases, _ = _leases()
    endings: list[Ending] = []
    kept, lost = _grant(leases, endings), _grant(leases, endings)
    assert leases.renew(kept, 6.0)
    assert leases.expire(9.9) == 0
    assert leases.next_expiry() == 10.0
    assert leases.expire(10.0) == 1
    assert endings == ["expired"]
    assert list(leases) == [kept]
    assert not leases.renew(lost, 11.0)
    assert leases.expire(16.0) == 1
    assert leases.next_expiry() == float("inf")


def test_no_reader_keeps_a_lease_for_ever() -> None:
    leases, _ = _leases()
    endings: list[Ending] = []
    number = _grant(leases, endings)
    for now in range(1, int(LEASE_LIMIT_S), 5):
        assert leases.renew(number, float(now))
        assert leases.expire(float(now)) == 0
    assert leases.expire(LEASE_LIMIT_S) == 1


def test_leases_are_bounded_and_slots_come_back() -> None:
    leases, seals = _leases(num_slots=2)
    endings: list[Ending] = []
    first = _grant(leases, endings)
    _grant(leases, endings)
    assert leases.grant(endings.append, 0.0) is None
    leases.end(first, "released")
    third = _grant(leases, endings)
    assert third != first, "a slot that is used again shows another lease"
    assert third in seals
    assert first not in seals


def test_an_end_that_offers_again_finds_room() -> None:
    leases, seals = _leases(num_slots=1)
    again: list[int] = []
    lease = leases.grant(lambda _: again.append(_grant(leases, [])), 0.0)
    assert lease is not None
    leases.end(lease.id, "released")
    assert seals == again


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["grant", "renew", "end", "expire"]), st.integers(0, 9)), max_size=40))
def test_seals_and_leases_agree_whatever_happens(moves: list[tuple[str, int]]) -> None:
    leases, seals = _leases(num_slots=3, lease_s=5.0)
    endings: list[Ending] = []
    granted: list[int] = []
    for now, (move, which) in enumerate(moves):
        if move == "grant":
            is_full = 0 not in seals
            lease = leases.grant(endings.append, float(now))
            assert (lease is None) == is_full
            granted += [lease.id] if lease is not None else []
        elif move == "renew" and granted:
            leases.renew(granted[which % len(granted)], float(now))
        elif move == "end" and granted:
            leases.end(granted[which % len(granted)], "released")
        elif move == "expire":
            leases.expire(float(now))
        assert sorted(seal for seal in seals if seal) == sorted(leases)
        assert len(granted) == len(leases) + len(endings)


def test_a_number_that_is_taken_is_drawn_again() -> None:
    draws = iter([0, 5, 0, 5, 6])
    seals = [0, 0]
    leases = Leases(seals, lease_s=1.0, draw=lambda: next(draws))
    for _ in seals:
        leases.grant(lambda _: None, 0.0)
    assert sorted(seals) == [5, 6]
