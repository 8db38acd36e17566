"""Jobs: what an engine gets is sound, whatever came in; what is not sound has a reason that its owner can read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import encode
from bus.errors import DeadlinePassed, InvalidRequest, Malformed, PromptTooLong, UnknownModel
from bus.messages.base import pack_u32
from bus.messages.inference import Cancel, GenerateJob, Hints, Stopping, deadline_by_clock
from components.worker.jobs import (
    MAX_CANCELLED,
    Served,
    make_request,
    read_command,
    read_job,
    read_tickets,
    reason_to_end,
)

SERVED = Served(model="tiny", max_model_len=32, vocab_size=100, eos_token_ids=frozenset({2}))
JOB = GenerateJob(
    request_id="r",
    frontend="f-1",
    ticket=7,
    model="tiny",
    prompt=pack_u32([5, 6, 7]),
    stopping=Stopping(max_tokens=4),
)


def changed(**fields: object) -> GenerateJob:
    return msgspec.structs.replace(JOB, **fields)


def test_a_job_becomes_a_request() -> None:
    request = make_request(changed(output=pack_u32([8])), 3, SERVED, now=0.0)
    assert (request.key, request.prompt, request.output) == (3, [5, 6, 7], [8])
    assert request.eos_token_ids == frozenset({2})


def test_a_class_goes_before_another_whatever_their_priorities() -> None:
    ranks = [
        make_request(changed(latency_class=name, hints=Hints(priority=priority)), 1, SERVED, now=0.0).rank
        for name in ("interactive", "standard", "batch")
        for priority in (100, 0, -100)
    ]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (changed(model="other"), UnknownModel),
        (changed(deadline_at=9.0), DeadlinePassed),
        (changed(prompt=b""), InvalidRequest),
        (changed(prompt=b"abc"), InvalidRequest),
        (changed(output=b"abcde"), InvalidRequest),
        (changed(prompt=pack_u32([100])), InvalidRequest),
        (changed(output=pack_u32([2**32 - 1])), InvalidRequest),
        (changed(stopping=Stopping(max_tokens=1, stop_token_ids=[100])), InvalidRequest),
        (changed(prompt=pack_u32([1] * 32)), PromptTooLong),
        (changed(prompt=pack_u32([1] * 20), output=pack_u32([1] * 13)), PromptTooLong),
    ],
)
def test_a_job_that_cannot_run_says_why(job: GenerateJob, error: type[Exception]) -> None:
    with pytest.raises(error):
        make_request(job, 1, SERVED, now=10.0)


@pytest.mark.parametrize("frontend", ["", "a.b", "a b", "*", ">", "a\r\nPUB x 0", "A", "ü", "x" * 100])
def test_an_owner_that_no_subject_can_name_is_malformed(frontend: str) -> None:
    with pytest.raises(Malformed):
        read_job(encode(changed(frontend=frontend)))
    with pytest.raises(Malformed):
        read_command(encode(Cancel(frontend=frontend, tickets=b"")))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(payload: bytes) -> None:
    for read in (read_job, read_command):
        with pytest.raises(Malformed):
            read(payload)


def test_a_cancel_is_bounded() -> None:
    assert list(read_tickets(Cancel(frontend="f-1", tickets=pack_u32([1, 2])))) == [1, 2]
    with pytest.raises(Malformed):
        read_tickets(Cancel(frontend="f-1", tickets=pack_u32(range(MAX_CANCELLED + 1))))
    with pytest.raises(Malformed):
        read_tickets(Cancel(frontend="f-1", tickets=b"abc"))


@pytest.mark.parametrize(
    ("output", "stopping", "reason"),
    [
        ([], Stopping(max_tokens=1), None),
        ([8, 9], Stopping(max_tokens=2), "length"),
        ([8, 2], Stopping(max_tokens=9), "stop"),
        ([8, 2], Stopping(max_tokens=9, ignore_eos=True), None),
        ([8, 9], Stopping(max_tokens=9, stop_token_ids=[9]), "stop"),
        ([8, 2], Stopping(max_tokens=9, min_tokens=3), None),
        ([2, 8], Stopping(max_tokens=9), None),
        ([8] * 28, Stopping(max_tokens=99), None),
        ([8] * 29, Stopping(max_tokens=99), "length"),
    ],
)
def test_tokens_that_already_complete_a_request_end_it(
    output: list[int], stopping: Stopping, reason: str | None
) -> None:
    request = make_request(changed(output=pack_u32(output), stopping=stopping), 1, SERVED, now=0.0)
    assert reason_to_end(request, SERVED.max_model_len) == reason


@pytest.mark.parametrize(
    ("skew_s", "left_s"), [(0.0, 10.0), (3600.0, 10.0), (-3600.0, 10.0), (60.0, -50.0), (-2.0, 12.0)]
)
def test_a_clock_that_is_hours_off_costs_no_request_its_time(skew_s: float, left_s: float) -> None:
    job = changed(submitted_at=1000.0, deadline_at=1010.0)
    now = 1000.0 + skew_s
    deadline_at = deadline_by_clock(job, now)
    assert deadline_at is not None
    assert deadline_at - now == left_s
