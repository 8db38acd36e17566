"""Each token counts once: only if its ticket is the live attempt's and its offset is the next one."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import BuswayError, Malformed
from bus.messages.base import pack_u32, unpack_u32
from bus.messages.inference import (
    Accepted,
    Embedding,
    Failed,
    Finished,
    FinishReason,
    Sampling,
    StepBatch,
    Stopping,
    Task,
    TokenLogprobs,
)
from bus.metrics import DoublingHistogram
from frontend.errors import TooManyRequests
from frontend.request import Generation, Request, Usage
from frontend.requests import LOST_S, MAX_ALL_ATTEMPTS, Requests
from frontend.tickets import make_tickets


class Recorder:
    """An output that keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.ending = ""

    def push(self, token: int) -> None:
        self.tokens.append(token)

    def push_logprobs(self, logprobs: TokenLogprobs) -> None:
        self.logprobs.append(logprobs)

    def flush(self) -> bool:
        return False

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        self.ending = reason

    def fail(self, error: BuswayError) -> None:
        self.ending = error.code


class Gaps(DoublingHistogram):
    """A histogram outside the registry."""

    def __init__(self) -> None:
        self.counts = [0] * 64
        self.sum = 0.0


def make_table(max_requests: int = 100, max_attempts: int = 3) -> Requests:
    return Requests(max_requests=max_requests, max_attempts=max_attempts, gaps=Gaps(), tickets=make_tickets(bytes(16)))


def make_request(
    max_tokens: int = 100, stop_token_ids: tuple[int, ...] = (), task: Task = "generate"
) -> tuple[Request, Recorder]:
    recorder = Recorder()
    generation = Generation(
        model="m",
        model_slug="m",
        prompt=pack_u32([1, 2, 3]),
        sampling=Sampling(seed=7),
        stopping=Stopping(max_tokens=max_tokens, stop_token_ids=list(stop_token_ids)),
        eos_token_ids=frozenset({0}),
        task=task,
    )
    return Request("r", generation, recorder), recorder


def batch(rows: list[tuple[int, int, int]], worker: str = "w-1", seq: int = 0, **more: object) -> StepBatch:
    tickets, offsets, tokens = (pack_u32(column) for column in zip(*rows, strict=True)) if rows else (b"", b"", b"")
    return StepBatch(worker=worker, seq=seq, tickets=tickets, offsets=offsets, tokens=tokens, **more)  # type: ignore[arg-type]


def test_tokens_in_order_are_taken_and_others_are_not() -> None:
    table = make_table()
    request, recorder = make_request()
    table.open(request, 0.0)
    ticket = request.ticket
    outcome = table.take(batch([(ticket, 0, 10), (ticket, 1, 11), (ticket, 1, 99), (ticket, 0, 99)]), 1.0)
    assert recorder.tokens == [10, 11]
    assert request.worker == "w-1"
    assert table.num_duplicates == 2
    assert not outcome.gaps
    outcome = table.take(batch([(ticket, 3, 13), (ticket, 4, 14)], seq=1), 1.1)
    assert recorder.tokens == [10, 11]
    assert list(outcome.gaps.values()) == [request]
    assert table.num_gaps == 1


def test_another_attempt_goes_on_from_the_tokens_so_far_under_a_new_ticket() -> None:
    table = make_table()
    request, recorder = make_request()
    table.open(request, 0.0)
    old = request.ticket
    table.take(batch([(old, 0, 10), (old, 1, 11)]), 1.0)
    assert table.retry(request, 2.0)
    job = request.job("f-1", 123.0)
    assert (job.attempt, job.ticket) == (1, request.ticket)
    assert job.ticket != old
    assert unpack_u32(job.output).tolist() == [10, 11]
    assert job.sampling.seed == 7
    outcome = table.take(batch([(old, 2, 66), (request.ticket, 2, 12)], worker="w-2"), 3.0)
    assert recorder.tokens == [10, 11, 12]
    assert outcome.unknown == {old}
    assert table.num_stale == 1
    assert request.worker == "w-2"


def test_attempts_are_bounded() -> None:
    table = make_table(max_attempts=3)
    request, _ = make_request()
    table.open(request, 0.0)
    assert [table.retry(request, 0.0) for _ in range(4)] == [True, True, False, False]
    assert request.attempt == 2


def test_an_end_counts_only_after_all_tokens() -> None:
    table = make_table()
    request, _ = make_request()
    table.open(request, 0.0)
    early = table.take(batch([(request.ticket, 0, 5)], finished=[Finished(request.ticket, 2, "stop")]), 1.0)
    assert not early.finished
    assert request.ticket in early.gaps
    table.retry(request, 1.0)
    end = Finished(request.ticket, 2, "stop", cached_tokens=2)
    outcome = table.take(batch([(request.ticket, 1, 6)], finished=[end]), 2.0)
    assert outcome.finished == [(request, end)]
    assert request.usage() == Usage(3, 2, 2)


def test_what_was_cached_is_known_though_the_end_is_never_told() -> None:
    table = make_table()
    request, _ = make_request()
    table.open(request, 0.0)
    table.take(batch([], accepted=[Accepted(request.ticket)]), 1.0)
    table.take(batch([(request.ticket, 0, 5)], accepted=[Accepted(request.ticket, 2)]), 1.0)
    assert request.usage() == Usage(3, 1, 2)


def test_accepted_failed_and_unknown_tickets_are_told_apart() -> None:
    table = make_table()
    request, _ = make_request()
    table.open(request, 0.0)
    failed = Failed(request.ticket, "engine_busy", "full", True)
    outcome = table.take(batch([], accepted=[Accepted(request.ticket), Accepted(77)], failed=[failed]), 1.0)
    assert request.worker == "w-1"
    assert outcome.unknown == {77}
    assert outcome.failed == [(request, failed)]


def test_a_job_that_reached_two_workers_belongs_to_the_first_that_speaks() -> None:
    table = make_table()
    request, recorder = make_request()
    table.open(request, 0.0)
    ticket = request.ticket
    table.take(batch([], accepted=[Accepted(ticket)]), 1.0)
    table.take(batch([(ticket, 0, 10)], seq=1), 1.0)
    late = batch(
        [(ticket, 1, 77), (ticket, 5, 77)],
        worker="w-2",
        accepted=[Accepted(ticket)],
        finished=[Finished(ticket, 1, "stop")],
        failed=[Failed(ticket, "engine_busy", "full", True)],
        logprobs=[TokenLogprobs(ticket, 0, -0.5)],
    )
    outcome = table.take(late, 1.1)
    assert outcome.unknown == {ticket}
    assert (outcome.gaps, outcome.finished, outcome.failed, recorder.logprobs) == ({}, [], [], [])
    table.take(batch([(ticket, 1, 11)], seq=2), 1.2)
    assert (recorder.tokens, request.worker) == ([10, 11], "w-1")


def test_requests_are_bounded_and_closing_frees_a_place() -> None:
    table = make_table(max_requests=1)
    first, second = make_request()[0], make_request()[0]
    table.open(first, 0.0)
    with pytest.raises(TooManyRequests):
        table.open(second, 0.0)
    table.close(first)
    table.close(first)
    table.open(second, 0.0)
    assert len(table) == 1
    assert second.ticket != first.ticket


@pytest.mark.parametrize(
    ("tokens", "ending"), [([], None), ([5, 6], None), ([5, 0], "stop"), ([5, 9], "stop"), ([5, 6, 7], "length")]
)
def test_a_request_knows_when_its_tokens_are_all_there_will_be(tokens: list[int], ending: str | None) -> None:
    table = make_table()
    request, _ = make_request(max_tokens=3, stop_token_ids=(9,))
    table.open(request, 0.0)
    table.take(batch([(request.ticket, offset, token) for offset, token in enumerate(tokens)]), 1.0)
    assert request.ending() == ending


def test_tokens_are_no_vector() -> None:
    """What a worker sends for an embedding that does not know that task."""
    table = make_table()
    request, _ = make_request(max_tokens=1, task="embed")
    table.open(request, 0.0)
    outcome = table.take(batch([(request.ticket, 0, 7)], finished=[Finished(request.ticket, 1, "length")]), 1.0)
    assert (outcome.finished, request.ending()) == ([], None)
    table.take(batch([], seq=1, embeddings=[Embedding(request.ticket, bytes(8))]), 1.0)
    assert request.ending() == "stop"


def test_a_missing_batch_makes_the_workers_requests_suspect() -> None:
    table = make_table()
    quiet, loud, other = (make_request()[0] for _ in range(3))
    for request in (quiet, loud, other):
        table.open(request, 0.0)
    table.take(batch([(quiet.ticket, 0, 1), (loud.ticket, 0, 1)], seq=0), 1.0)
    table.take(batch([(other.ticket, 0, 1)], worker="w-2", seq=5), 1.0)
    table.take(batch([(loud.ticket, 1, 1)], seq=2), 2.0)
    assert table.overdue(4.0, 3.0) == []
    table.take(batch([(loud.ticket, 2, 1)], seq=3), 4.0)
    assert table.overdue(5.5, 3.0) == [quiet]


def test_what_waits_for_a_worker_that_takes_nothing_is_new_or_lies_in_its_lane() -> None:
    table = make_table()
    old, sent_there, new, held, running = (make_request()[0] for _ in range(5))
    for request, at in ((old, 0.0), (sent_there, 0.0), (new, 8.0), (held, 8.0), (running, 8.0)):
        table.open(request, at)
    sent_there.addressee = "w-1"
    held.is_held = True
    table.take(batch([(running.ticket, 0, 1)]), 8.0)
    assert table.untaken("w-1", 5.0) == [sent_there, new]
    assert table.untaken("w-2", 5.0) == [new]
    assert table.untaken("w-1", 9.0) == [sent_there]


def test_requests_nobody_accepted_and_requests_of_dead_workers_are_found() -> None:
    table = make_table()
    waiting, running = make_request()[0], make_request()[0]
    table.open(waiting, 0.0)
    table.open(running, 0.0)
    table.take(batch([(running.ticket, 0, 1)]), 1.0)
    assert table.unaccepted() == [waiting]
    assert table.unaccepted(before=0.0) == []
    assert table.running_on(["w-1", "w-9"]) == [running]


@pytest.mark.parametrize(
    "columns", [(b"\1\0\0\0", b"", b""), (b"\1\0\0", b"\0\0\0", b"\0\0\0"), (b"\1\0\0\0" * 2,) * 3]
)
def test_columns_that_do_not_fit_are_refused_or_harmless(columns: tuple[bytes, bytes, bytes]) -> None:
    table = make_table()
    try:
        outcome = table.take(StepBatch("w-1", 0, *columns), 0.0)
    except Malformed:
        return
    assert outcome.unknown == {1}


def test_log_probabilities_of_tokens_that_are_not_there_are_dropped() -> None:
    table = make_table()
    request, recorder = make_request()
    table.open(request, 0.0)
    told = [TokenLogprobs(request.ticket, 0, -0.5), TokenLogprobs(request.ticket, 1, -1.0), TokenLogprobs(99, 0, -1.0)]
    table.take(batch([(request.ticket, 0, 5)], logprobs=told), 1.0)
    assert recorder.logprobs == told[:1]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), num_tokens=st.integers(1, 12))
def test_whatever_is_lost_doubled_or_late_the_client_gets_every_token_once(seed: int, num_tokens: int) -> None:
    """Workers that lose, repeat and delay messages, and several attempts alive at once: the text is the text."""
    chaos = random.Random(seed)
    text = [chaos.randrange(1, 1000) for _ in range(num_tokens)]
    table = make_table(max_attempts=1000)
    request, recorder = make_request(max_tokens=num_tokens)
    table.open(request, 0.0)
    in_flight: list[StepBatch] = []
    emitted = -1
    while request.ending() is None:
        if request.ticket != emitted:
            emitted = request.ticket
            have = len(unpack_u32(request.job("f", 0.0).output))
            steps = [batch([(emitted, at, text[at])], f"w-{emitted}", at) for at in range(have, num_tokens)]
            steps.append(batch([], f"w-{emitted}", num_tokens, finished=[Finished(emitted, num_tokens, "length")]))
            in_flight += [step for step in steps for _ in range(chaos.choice([0, 1, 1, 1, 1, 2]))]
        if not in_flight:
            assert table.retry(request, 0.0)
            continue
        outcome = table.take(in_flight.pop(chaos.choice([0, 0, 0, chaos.randrange(len(in_flight))])), 0.0)
        assert recorder.tokens == text[: len(recorder.tokens)]
        for gap in outcome.gaps.values():
            assert table.retry(gap, 0.0)
    assert recorder.tokens == text


def test_batches_that_come_again_fill_a_gap() -> None:
    table = make_table()
    request, recorder = make_request()
    table.open(request, 0.0)
    batches = [batch([(request.ticket, number, 10 + number)], seq=number) for number in range(5)]
    assert table.take(batches[0], 1.0).missing_seq is None
    outcome = table.take(batches[3], 2.0)
    assert outcome.missing_seq == 1
    assert list(outcome.gaps.values()) == [request]
    assert table.workers() == {"w-1"}
    assert table.next_seqs(["w-1", "w-2"]) == {"w-1": 1, "w-2": 0}
    for again in (*batches[1:4], *batches[2:4]):
        assert table.take(again, 2.1).missing_seq is None
    assert table.take(batches[4], 2.2).missing_seq is None
    assert recorder.tokens == [10, 11, 12, 13, 14]
    assert table.overdue(9.0, 1.0) == []


def test_an_end_that_came_before_the_last_token_is_asked_for_again() -> None:
    table = make_table()
    request, recorder = make_request()
    table.open(request, 0.0)
    last, end = batch([(request.ticket, 1, 11)], seq=1), batch([], seq=2)
    end.finished.append(Finished(request.ticket, 2, "stop"))
    table.take(batch([(request.ticket, 0, 10)], seq=0), 1.0)
    assert table.take(end, 2.0).missing_seq == 1
    assert table.take(last, 2.1).missing_seq is None
    assert recorder.tokens == [10, 11]
    assert table.next_seqs(["w-1"]) == {"w-1": 2}
    assert table.take(end, 3.2).finished
    assert table.next_seqs(["w-1"]) == {"w-1": 3}


def test_a_batch_that_does_not_come_is_not_waited_for_for_ever() -> None:
    table = make_table()
    table.take(batch([], seq=0), 1.0)
    assert table.take(batch([], seq=2), 2.0).missing_seq == 1
    assert table.take(batch([], seq=3), 2.0 + LOST_S).missing_seq == 1
    assert table.take(batch([], seq=4), 2.1 + LOST_S).missing_seq is None
    assert table.next_seqs(["w-1"]) == {"w-1": 5}


def test_who_lost_the_end_in_a_batch_that_is_given_up_is_suspect_though_tokens_came_since_its_loss() -> None:
    """It waited for ever: the worker was done with it, and nobody asked for that batch any more."""
    table = make_table()
    request, _ = make_request()
    table.open(request, 0.0)
    table.take(batch([(request.ticket, 0, 10)], seq=0), 1.0)
    assert table.take(batch([], seq=3), 2.0).missing_seq == 1
    assert table.take(batch([(request.ticket, 1, 11)], seq=1), 2.1).missing_seq is None
    assert table.take(batch([], seq=4), 2.1 + LOST_S).missing_seq is None
    assert table.overdue(9.0, 1.0) == [request]


def test_requests_without_a_token_for_long_are_quiet_whether_accepted_or_not() -> None:
    table = make_table()
    fresh, heard, silent, untaken = (make_request()[0] for _ in range(4))
    for request, now in ((heard, 1.0), (silent, 1.0), (untaken, 1.0), (fresh, 5.0)):
        table.open(request, now)
    table.take(batch([(heard.ticket, 0, 7), (silent.ticket, 0, 7)]), 2.0)
    table.take(batch([(heard.ticket, 1, 8)], seq=1), 5.0)
    assert table.quiet(4.5) == [silent, untaken]
    assert table.quiet(1.0) == []


def test_a_worker_that_numbers_its_batches_anew_is_followed_from_there() -> None:
    table = make_table()
    request, _ = make_request()
    table.open(request, 0.0)
    for number in range(4):
        table.take(batch([(request.ticket, number, 1)], seq=number), 1.0)
    assert table.take(batch([], seq=0), 2.0).missing_seq is None
    assert table.take(batch([], seq=1), 2.0).missing_seq is None
    assert table.take(batch([], seq=3), 2.0).missing_seq == 2


def test_attempts_without_a_fault_are_bounded_apart() -> None:
    table = make_table(max_attempts=2)
    request, _ = make_request()
    table.open(request, 0.0)
    assert all(table.retry(request, 0.0, is_fault=False) for _ in range(MAX_ALL_ATTEMPTS - 1))
    assert not table.retry(request, 0.0, is_fault=False)
    other, _ = make_request()
    table.open(other, 0.0)
    assert [table.retry(other, 0.0, is_fault=fault) for fault in (False, True, False, True)] == [
        True,
        True,
        True,
        False,
    ]


def test_who_refuses_what_was_handed_over_to_it_is_heard() -> None:
    table, (request, _) = make_table(), make_request()
    table.open(request, 0.0)
    table.take(batch([(request.ticket, 0, 7)]), 1.0)
    refusal = Failed(request.ticket, "invalid_request", "no", False)
    assert table.take(batch([], "w-2", failed=[refusal]), 2.0).failed == []
    accepted = [Accepted(request.ticket, source="w-1")]
    assert table.take(batch([], "w-2", seq=1, accepted=accepted, failed=[refusal]), 3.0).failed == [(request, refusal)]


def test_a_router_that_is_gone_is_forgotten() -> None:
    table = make_table()
    table.take(batch([], "r-1"), 1.0)
    table.take(batch([], "r-1", seq=2), 1.0)
    assert table.next_seqs(["r-1"]) == {"r-1": 1}
    table.forget("r-1")
    assert table.next_seqs(["r-1"]) == {"r-1": 0}
    assert not table._behind
