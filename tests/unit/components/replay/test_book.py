"""The book counts a token only where it belongs, and tells how each request went."""

import pytest

from bus.errors import Malformed
from bus.messages.base import pack_u32
from bus.messages.inference import Accepted, Failed, Finished, StepBatch
from components.replay.book import GAPS_PER_S, MAX_ATTEMPTS, Arrival, Book


def arrival(num_output: int = 2) -> Arrival:
    return Arrival(at_s=1.0, prompt=pack_u32(range(100)), num_output=num_output)


def step(
    rows: list[tuple[int, int]],
    *,
    finished: list[Finished] | None = None,
    failed: list[Failed] | None = None,
    worker: str = "w-1",
) -> StepBatch:
    return StepBatch(
        worker=worker,
        seq=0,
        tickets=pack_u32([ticket for ticket, _ in rows]),
        offsets=pack_u32([offset for _, offset in rows]),
        tokens=pack_u32([7 for _ in rows]),
        finished=finished or [],
        failed=failed or [],
    )


def test_a_request_from_arrival_to_end() -> None:
    book = Book()
    request = book.open(arrival(), 1.0)
    book.take(step([(request.ticket, 0)]), 1.25)
    book.take(step([(request.ticket, 1)], finished=[Finished(request.ticket, 2, "length", 64)]), 1.5)
    (outcome,) = book.outcomes
    assert (outcome.ending, outcome.worker, outcome.num_attempts) == ("finished", "w-1", 1)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (100, 2, 64)
    assert (outcome.ttft_s, outcome.e2e_s) == (0.25, 0.5)
    assert book.gaps == {GAPS_PER_S // 4: 1}
    assert not book


def test_tokens_of_strangers_and_tokens_twice_or_too_early_do_not_count() -> None:
    book = Book()
    request = book.open(arrival(), 0.0)
    ticket = request.ticket
    book.take(step([(ticket, 1), (ticket, 0), (ticket, 0), (ticket + 1, 0)]), 0.1)
    assert len(request.tokens) == 1


def test_a_lost_attempt_is_made_again_under_a_new_ticket_with_the_tokens_so_far() -> None:
    book = Book()
    request = book.open(arrival(), 0.0)
    old = request.ticket
    again = book.take(step([(old, 0)], failed=[Failed(old, "draining", "bye", True)]), 0.1)
    assert again == [request]
    book.take(step([(old, 1)]), 0.2)
    job = book.job(request, "f-1", "m", 0.0)
    assert (job.attempt, job.output, job.ticket != old) == (1, pack_u32([7]), True)


def test_attempts_are_bounded() -> None:
    book = Book()
    request = book.open(arrival(), 0.0)
    for _ in range(MAX_ATTEMPTS):
        book.take(step([], failed=[Failed(request.ticket, "engine_busy", "full", True)]), 0.1)
    (outcome,) = book.outcomes
    assert (outcome.ending, outcome.num_attempts, outcome.code) == ("failed", MAX_ATTEMPTS, "engine_busy")


@pytest.mark.parametrize(("code", "ending"), [("overloaded", "refused"), ("prompt_too_long", "failed")])
def test_a_final_word_is_final(code: str, ending: str) -> None:
    book = Book()
    request = book.open(arrival(), 0.0)
    assert book.take(step([], failed=[Failed(request.ticket, code, "no", False)]), 0.1) == []
    assert [(one.ending, one.code) for one in book.outcomes] == [(ending, code)]


def test_what_nobody_accepted_can_be_sent_again() -> None:
    book = Book()
    accepted, waiting = book.open(arrival(), 0.0), book.open(arrival(), 0.0)
    book.take(StepBatch(worker="w-1", seq=0, accepted=[Accepted(accepted.ticket)]), 0.1)
    assert book.reclaim() == [waiting]
    assert (accepted.attempt, waiting.attempt) == (0, 1)


def test_what_is_left_can_be_given_up() -> None:
    book = Book()
    for _ in range(3):
        book.open(arrival(), 0.0)
    book.give_up(9.0, "silence")
    assert [(one.ending, one.e2e_s) for one in book.outcomes] == [("failed", 9.0)] * 3
    assert not book


def test_broken_columns_are_malformed() -> None:
    with pytest.raises(Malformed):
        Book().take(StepBatch(worker="w", seq=0, tickets=b"abc"), 0.0)
