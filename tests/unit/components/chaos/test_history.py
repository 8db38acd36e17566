"""The history checker sees each way in which an answer can be what it should not be."""

import pytest
from msgspec.structs import replace

from components.chaos.history import Answer, Downtime, Outcome, Question, check, gap_across, judge

QUESTION = Question("a", 3, "one two three")
GOOD = Answer(
    question=QUESTION,
    status=200,
    text="one two three",
    num_tokens=3,
    num_endings=1,
    is_complete=True,
    started_at=10.0,
    ended_at=12.0,
)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, Outcome.OK),
        ({"status": 429}, Outcome.REFUSED),
        ({"status": 503, "error": "no worker"}, Outcome.REFUSED),
        ({"status": 500}, Outcome.LOST),
        ({"status": 0, "is_complete": False, "error": "refused"}, Outcome.LOST),
        ({"error": "gave up"}, Outcome.LOST),
        ({"is_complete": False}, Outcome.LOST),
        ({"num_endings": 0}, Outcome.LOST),
        ({"num_tokens": 2, "text": "one two"}, Outcome.LOST),
        ({"num_endings": 2}, Outcome.DOUBLED),
        ({"num_tokens": 4}, Outcome.DOUBLED),
        ({"text": "one two three three"}, Outcome.DOUBLED),
        ({"text": "one three two"}, Outcome.WRONG),
        ({"text": "one two thre"}, Outcome.WRONG),
    ],
)
def test_each_way_to_go_wrong_has_its_name(changes: dict[str, object], outcome: Outcome) -> None:
    assert judge(replace(GOOD, **changes)) is outcome


def test_what_breaks_with_its_frontend_is_cut_and_only_that() -> None:
    broken = replace(GOOD, is_complete=False, error="the connection broke")
    assert judge(broken, [Downtime(11.0, 11.5)]) is Outcome.CUT
    assert judge(broken, [Downtime(13.0, 14.0)]) is Outcome.LOST
    assert judge(replace(GOOD, text="wrong"), [Downtime(11.0, 11.5)]) is Outcome.WRONG
    assert judge(broken, [Downtime(11.0, 11.5, is_abrupt=False)]) is Outcome.LOST


def test_who_meets_no_frontend_while_one_is_down_on_purpose_was_promised_nothing() -> None:
    nobody = replace(GOOD, status=0, is_complete=False, is_connected=False, error="refused")
    for is_abrupt in (True, False):
        assert judge(nobody, [Downtime(11.0, 11.5, is_abrupt=is_abrupt)]) is Outcome.REFUSED
        assert judge(nobody, [Downtime(13.0, 14.0, is_abrupt=is_abrupt)]) is Outcome.LOST


def test_without_a_known_answer_the_length_is_what_counts() -> None:
    anything = replace(GOOD, question=Question("a", 3), text="whatever")
    assert judge(anything) is Outcome.OK
    assert judge(replace(anything, num_tokens=2)) is Outcome.LOST


def test_a_verdict_is_good_when_something_was_answered_and_nothing_is_bad() -> None:
    assert not check([]).is_good
    assert check([GOOD, replace(GOOD, status=503)]).is_good
    verdict = check([GOOD, replace(GOOD, text="one tvo three")])
    assert not verdict.is_good
    assert "differs at character 5" in verdict.first_bad


def test_the_gap_across_a_moment_is_that_of_streams_that_waited_then() -> None:
    waited = replace(GOOD, gap_began_at=10.9, longest_gap_s=0.5)
    elsewhere = replace(GOOD, gap_began_at=20.0, longest_gap_s=3.0)
    assert gap_across([waited, elsewhere], 11.0) == 0.5
    assert gap_across([waited, elsewhere], 15.0) == 0.0
    assert gap_across([waited, elsewhere], 15.0, 19.9) == 0.0
    assert gap_across([waited, elsewhere], 15.0, 20.1) == 3.0
