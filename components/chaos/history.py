"""Pure. What was asked and what came of it: every accepted request must end exactly once, with its known answer."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

REFUSALS = (408, 429, 503)
"""Statuses that promise nothing: the request was not accepted, and its client knows."""

SOON_S = 0.25
"""What ends streams is felt after this at the latest."""


class Question(msgspec.Struct, frozen=True):
    """A request whose answer is known. Without `expected`, any text of `max_tokens` tokens will do."""

    prompt: str | tuple[int, ...]
    max_tokens: int
    expected: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one request came to. Times are monotonic seconds."""

    question: Question
    status: int
    """Of HTTP; 0: there was no connection, or it ended before a status came."""
    text: str = ""
    num_tokens: int | None = None
    """What the usage chunk said; None: there was none."""
    num_endings: int = 0
    """Finish reasons that were told: one, if all is well."""
    is_complete: bool = False
    """The stream said `[DONE]`."""
    error: str = ""
    is_connected: bool = True
    """Somebody took the connection; nobody promised anything where nobody did."""
    started_at: float = 0.0
    first_at: float = 0.0
    """When the first text came; 0: none did."""
    ended_at: float = 0.0
    longest_gap_s: float = 0.0
    """Between two arrivals of text, or between the request and the first."""
    gap_began_at: float = 0.0


class Outcome(StrEnum):
    """How a request went."""

    OK = "ok"
    REFUSED = "refused"
    """Not accepted, and its client knows."""
    CUT = "cut"
    """The frontend that had it was killed: nobody else has its connection."""
    LOST = "lost"
    """Accepted, and then no answer, half of one, or an error."""
    DOUBLED = "doubled"
    """More than one end, or something after the whole answer."""
    WRONG = "wrong"
    """Another text."""


class Downtime(msgspec.Struct, frozen=True):
    """A frontend was ended on purpose, and its place served again: nobody may listen between these times."""

    began_at: float
    ended_at: float
    is_abrupt: bool = True
    """It was killed: what it served was cut. One that drains finishes that first."""


def judge(answer: Answer, downtimes: Sequence[Downtime] = ()) -> Outcome:
    """Say how a request went; one that broke with its frontend is `CUT`, and one that met none meanwhile `REFUSED`."""
    if answer.status in REFUSALS:
        return Outcome.REFUSED
    if answer.status != 200 or answer.error or not answer.is_complete:
        during = [d for d in downtimes if d.began_at <= answer.ended_at and answer.started_at <= d.ended_at]
        if during and not answer.is_connected:
            return Outcome.REFUSED
        return Outcome.CUT if any(d.is_abrupt for d in during) and not answer.is_complete else Outcome.LOST
    question, expected = answer.question, answer.question.expected
    num_tokens = question.max_tokens if answer.num_tokens is None else answer.num_tokens
    is_longer = expected is not None and len(answer.text) > len(expected) and answer.text.startswith(expected)
    if answer.num_endings > 1 or num_tokens > question.max_tokens or is_longer:
        return Outcome.DOUBLED
    if answer.num_endings == 0 or num_tokens < question.max_tokens:
        return Outcome.LOST
    return Outcome.OK if expected is None or answer.text == expected else Outcome.WRONG


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run, counted."""

    counts: dict[Outcome, int]
    first_bad: str
    """One of those that should not be, described; empty if there is none."""
    longest_gap_s: float
    """Of the answers that are as they should be."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or wrong, and something was answered at all."""
        bad = (Outcome.LOST, Outcome.DOUBLED, Outcome.WRONG)
        return self.counts[Outcome.OK] > 0 and not any(self.counts[outcome] for outcome in bad)


def check(answers: Sequence[Answer], downtimes: Sequence[Downtime] = ()) -> Verdict:
    """Judge all answers."""
    counts = dict.fromkeys(Outcome, 0)
    first_bad, longest_gap_s = "", 0.0
    for answer in answers:
        outcome = judge(answer, downtimes)
        counts[outcome] += 1
        if outcome is Outcome.OK:
            longest_gap_s = max(longest_gap_s, answer.longest_gap_s)
        elif outcome not in (Outcome.REFUSED, Outcome.CUT) and not first_bad:
            first_bad = _describe(outcome, answer)
    return Verdict(counts=counts, first_bad=first_bad, longest_gap_s=longest_gap_s)


def gap_across(answers: Sequence[Answer], at: float, until: float = 0.0) -> float:
    """Return the longest time without text, in seconds, of the streams that were waiting for some at that moment.

    With `until`, also of those that began to wait before then.
    """
    latest = max(at + SOON_S, until)
    return max(
        (a.longest_gap_s for a in answers if a.gap_began_at <= latest and a.gap_began_at + a.longest_gap_s >= at),
        default=0.0,
    )


def _describe(outcome: Outcome, answer: Answer) -> str:
    expected = answer.question.expected
    told = f"{outcome}: status {answer.status}, {answer.num_tokens} of {answer.question.max_tokens} tokens"
    if answer.error:
        return f"{told}, error {answer.error[:300]!r}"
    if expected is None or answer.text == expected:
        return f"{told}, {answer.num_endings} endings, {'a' if answer.is_complete else 'no'} [DONE]"
    pairs = zip(answer.text, expected, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(answer.text), len(expected)))
    got, wanted = answer.text[place : place + 40], expected[place : place + 40]
    return f"{told}, text differs at character {place}: {got!r} for {wanted!r}"
