"""Errors become the status and the envelope that OpenAI's clients know."""

import json

import pytest

from bus import errors as bus_errors
from bus.errors import BuswayError, InvalidRequest, NoWorker, PromptTooLong, QueueFull, UnknownModel
from frontend import errors
from frontend.errors import GenerationFailed, answer_for, envelope


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after_s"),
    [
        (InvalidRequest("no", param="n"), 400, "invalid_request", None),
        (PromptTooLong("long", param="messages"), 400, "context_length_exceeded", None),
        (UnknownModel("who"), 404, "model_not_found", None),
        (QueueFull("full"), 429, "queue_full", 1),
        (errors.TooManyRequests("many", delay_s=2.6), 429, "too_many_requests", 3),
        (NoWorker("none"), 503, "no_worker", 1),
        (errors.BodyTooLarge("big"), 413, "request_too_large", None),
        (GenerationFailed("too long", code="context_length_exceeded"), 400, "context_length_exceeded", None),
        (GenerationFailed("boom", code="engine_died"), 500, "engine_died", None),
        (GenerationFailed("busy", code="engine_busy"), 503, "engine_busy", 1),
    ],
)
def test_status_and_code(error: BuswayError, status: int, code: str, retry_after_s: int | None) -> None:
    answer = answer_for(error)
    assert (answer.status, answer.error.code, answer.retry_after_s) == (status, code, retry_after_s)
    body = json.loads(envelope(answer.error))
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_a_bug_shows_nothing_of_itself() -> None:
    answer = answer_for(KeyError("secret"))
    assert answer.status == 500
    assert b"secret" not in envelope(answer.error)


def test_every_error_that_may_be_retried_says_so_by_its_status() -> None:
    def leaves(kind: type[BuswayError]) -> list[type[BuswayError]]:
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]

    ours = [kind for kind in leaves(bus_errors.Retryable) if kind.__module__ in ("bus.errors", "frontend.errors")]
    assert {answer_for(kind("x")).status for kind in ours} == {429, 503}


def test_a_refusal_of_a_router_says_when_to_come_again() -> None:
    answer = answer_for(GenerationFailed("busy", code="overloaded", delay_s=7.0))
    assert (answer.status, answer.error.type, answer.retry_after_s) == (429, "rate_limit_error", 7)
    assert answer_for(GenerationFailed("busy", code="overloaded")).retry_after_s == 1
