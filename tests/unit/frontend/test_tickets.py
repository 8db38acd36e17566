"""Tickets: each once, in an order that says nothing of the next."""

from itertools import islice, pairwise

from frontend.tickets import make_tickets


def test_no_ticket_comes_twice_and_all_are_of_32_bits() -> None:
    seen = list(islice(make_tickets(bytes(16)), 20_000))
    assert len(set(seen)) == len(seen)
    assert min(seen) >= 0
    assert max(seen) < 2**32


def test_who_saw_some_tickets_does_not_know_the_others() -> None:
    first, second = (list(islice(make_tickets(bytes([key]) * 16), 1000)) for key in (1, 2))
    assert not set(first) & set(second)
    steps = {(after - before) % 2**32 for before, after in pairwise(first)}
    assert len(steps) == len(first) - 1


def test_tickets_are_spread_over_their_range() -> None:
    seen = list(islice(make_tickets(b"x" * 16), 4096))
    counts = [sum(ticket >> 28 == part for ticket in seen) for part in range(16)]
    assert min(counts) > 180
    assert max(counts) < 340
