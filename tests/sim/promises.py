"""Pure. What the system promised to each client of a run, and what it did not keep of that."""

from collections.abc import Iterable, Sequence

import msgspec

from tests.history import Asked, Ended, Event, check_history
from tests.sim.clients import Question

REFUSALS = frozenset(
    {
        "bus_unavailable",
        "no_responder",
        "no_worker",
        "overloaded",
        "queue_full",
        "shutting_down",
        "too_many_requests",
    }
)
"""What a client may be told at once, or after a wait, while things are broken; never in the middle of an answer."""
FAILURES = frozenset({"attempts_exhausted", "request_quarantined"})
"""How an answer may end while processes die every few seconds: one request may meet too many of them."""
NOTHING: frozenset[str] = frozenset()
LATE = frozenset({"deadline_passed", "overloaded"})
"""How an answer may end whose client wants none after a while: it took too long, or would have had to wait so long."""
LATE_S = 1.0
"""How long after its deadline a request must have ended, when nothing is broken."""


class _Promise(msgspec.Struct, frozen=True):
    may_refuse: frozenset[str]
    may_fail: frozenset[str]


class Promises:
    """What was asked, and what may become of it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._promises: dict[str, _Promise] = {}
        self._limits: dict[str, float] = {}

    def note(self, question: Question, *, is_calm: bool) -> None:
        """A question is asked; in the calm none may be refused or fail, and none may be late.

        But for those of the batch class: they get what others leave, and what was asked in bad times goes first.
        """
        is_batch = question.hints.get("latency_class") == "batch"
        promise = _Promise(REFUSALS, FAILURES)
        if is_calm:
            promise = _Promise(frozenset({"overloaded"}) if is_batch else NOTHING, NOTHING)
        if question.num_choices > 1:
            # One choice that is refused ends the others, which may have begun.
            promise = _Promise(NOTHING, promise.may_refuse | promise.may_fail)
        if question.timeout_s is not None:
            promise = _Promise(promise.may_refuse, promise.may_fail | LATE)
        self.names += question.names
        self._promises |= dict.fromkeys(question.names, promise)
        if is_calm and question.timeout_s is not None:
            self._limits |= dict.fromkeys(question.names, question.timeout_s + LATE_S)

    def open(self, history: Iterable[Event]) -> list[str]:
        """Return who waits for an answer."""
        ended = {event.request for event in history if isinstance(event, Ended)}
        return [name for name in self.names if name not in ended]

    def check(self, history: Sequence[Event]) -> list[str]:
        """Return what was not kept, a line each; what nobody noted, such as lines of batches, may be refused."""
        usual = _Promise(REFUSALS, FAILURES)
        wrong: list[str] = []
        kinds = dict.fromkeys([usual, *self._promises.values()])
        for kind in kinds:
            events = [event for event in history if self._promises.get(event.request, usual) == kind]
            wrong += check_history(events, may_refuse=kind.may_refuse, may_fail=kind.may_fail)
        return wrong + self._check_limits(history)

    def _check_limits(self, history: Iterable[Event]) -> list[str]:
        asked: dict[str, float] = {}
        wrong = []
        for event in history:
            if isinstance(event, Asked):
                asked[event.request] = event.at
            elif isinstance(event, Ended) and event.request in self._limits:
                took_s = event.at - asked[event.request]
                if took_s > self._limits[event.request]:
                    wrong.append(f"{event.request}: ended after {took_s:.3f} s, its deadline long past")
        return wrong
