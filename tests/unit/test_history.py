"""The checker of histories finds each kind of broken promise, and nothing in a kept one."""

import pytest

from tests.history import Asked, Ended, Event, Expected, Idle, Shown, check_history, check_idle, expect

EXPECTED = Expected((1, 2, 3, 4), "abcd")
ASKED = Asked("r", 0.0, EXPECTED)
WHOLE = Shown("r", 1.0, "abcd", (1, 2, 3, 4))
END = Ended("r", 2.0, "finished", "length", 4)


def test_a_kept_promise_is_no_violation() -> None:
    assert check_history([ASKED, Shown("r", 1.0, "ab", (1, 2)), Shown("r", 1.5, "cd", (3, 4)), END]) == []


def test_a_client_that_left_and_an_allowed_failure_need_a_beginning_only() -> None:
    part = Shown("r", 1.0, "ab", (1, 2))
    assert check_history([ASKED, part, Ended("r", 2.0, "left")]) == []
    assert check_history([ASKED, part, Ended("r", 2.0, "failed", "no_worker")], may_fail=["no_worker"]) == []


def test_a_refusal_is_one_only_before_the_first_token() -> None:
    refused = Ended("r", 2.0, "failed", "overloaded")
    assert check_history([ASKED, refused], may_refuse=["overloaded"]) == []
    assert check_history([ASKED, Shown("r", 1.0, "ab"), refused], may_refuse=["overloaded"])


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([ASKED], "never ended"),
        ([ASKED, WHOLE], "never ended"),
        ([ASKED, WHOLE, END, END], "ended 2 times"),
        ([ASKED, END, WHOLE], "went on after its end"),
        ([ASKED, ASKED, WHOLE, END], "asked twice"),
        ([WHOLE], "without having been asked"),
        ([ASKED, Shown("r", 1.0, "acd"), END], "1 lost, 0 too many"),
        ([ASKED, Shown("r", 1.0, "abbcd"), END], "0 lost, 1 too many"),
        ([ASKED, Shown("r", 1.0, "abXd"), END], "1 wrong"),
        ([ASKED, Shown("r", 1.0, "abcd", (1, 2, 4)), END], "tokens of length 3"),
        ([ASKED, Shown("r", 1.0, "abcde"), Ended("r", 2.0, "left")], "1 too many"),
        ([ASKED, Shown("r", 1.0, "b"), Ended("r", 2.0, "left")], "differs at 0"),
        ([ASKED, WHOLE, Ended("r", 2.0, "finished", "stop")], "finished because of 'stop'"),
        ([ASKED, WHOLE, Ended("r", 2.0, "finished", "length", 5)], "used 5 tokens"),
        ([ASKED, Ended("r", 2.0, "failed", "internal")], "failed at 2.000 s: internal"),
    ],
)
def test_each_broken_promise_is_told(events: list[Event], said: str) -> None:
    wrong = check_history(events, may_fail=["no_worker"])
    assert any(said in line for line in wrong), wrong


def test_an_idle_worker_holds_nothing() -> None:
    assert check_idle([Idle("w-1", 0, 0, 0, 10, 10)]) == []
    for leak in (Idle("w-1", 1, 0, 0, 10, 10), Idle("w-1", 0, 0, 1, 10, 10), Idle("w-1", 0, 0, 0, 9, 10)):
        assert check_idle([leak])
    for elsewhere in ("leases", "moving", "pinned"):
        assert check_idle([Idle("w-1", 0, 0, 0, 10, 10, **{elsewhere: 1})])


def test_the_oracle_is_asked_for_as_many_tokens_as_the_request() -> None:
    expected = expect([5, 6], 3, 32_000, lambda tokens: "-".join(map(str, tokens)))
    assert len(expected.tokens) == 3
    assert expected.text == "-".join(map(str, expected.tokens))
