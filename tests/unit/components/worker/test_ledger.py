"""Ledger: one ticket starts once, whatever is delivered again or cancelled too early."""

from components.worker.ledger import FORGET_OVER_AFTER_S, MAX_OVER, Attempt, Ledger
from components.worker.outbox import Outbox


def attempt(key: int, ticket: int, outbox: Outbox) -> Attempt:
    return Attempt(
        key=key,
        ticket=ticket,
        outbox=outbox,
        offset=0,
        request_id="r",
        num_prompt_tokens=3,
        first_offset=0,
        accepted_at=0.0,
    )


def test_a_live_ticket_is_known_by_owner_and_number() -> None:
    ledger, outbox = Ledger(), Outbox("f-1")
    ledger.add(attempt(1, 7, outbox))
    assert ledger.is_known("f-1", 7, now=0.0)
    assert not ledger.is_known("f-2", 7, now=0.0)
    assert not ledger.is_known("f-1", 8, now=0.0)


def test_a_ticket_that_ended_is_known_for_a_while() -> None:
    ledger, outbox = Ledger(), Outbox("f-1")
    ledger.add(attempt(1, 7, outbox))
    assert ledger.end(1, now=5.0) is not None
    assert ledger.end(1, now=5.0) is None
    assert ledger.is_known("f-1", 7, now=5.0 + FORGET_OVER_AFTER_S - 0.1)
    assert not ledger.is_known("f-1", 7, now=5.0 + FORGET_OVER_AFTER_S)


def test_a_cancel_that_comes_before_its_job_is_remembered() -> None:
    ledger = Ledger()
    assert ledger.cancel("f-1", 7, now=0.0) is None
    assert ledger.is_known("f-1", 7, now=1.0)


def test_a_cancel_takes_the_attempt_out() -> None:
    ledger, outbox = Ledger(), Outbox("f-1")
    first, second = attempt(1, 7, outbox), attempt(2, 8, outbox)
    ledger.add(first)
    ledger.add(second)
    assert ledger.cancel("f-1", 7, now=0.0) is first
    assert ledger.of_owner("f-1") == [second]
    assert list(ledger.live) == [2]


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    ledger = Ledger()
    for ticket in range(MAX_OVER + 1):
        ledger.cancel("f-1", ticket, now=0.0)
    assert not ledger.is_known("f-1", 0, now=0.0)
    assert ledger.is_known("f-1", 1, now=0.0)
    assert ledger.is_known("f-1", MAX_OVER, now=0.0)


def test_what_is_over_for_long_is_not_kept() -> None:
    ledger = Ledger()
    for ticket in range(100):
        ledger.cancel("f-1", ticket, now=float(ticket))
    ledger.cancel("f-1", 0, now=100.0)
    assert len(ledger._over) == FORGET_OVER_AFTER_S
    assert ledger.is_known("f-1", 0, now=100.0)
