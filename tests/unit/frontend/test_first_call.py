"""Clients that want no parallel calls get the first one, and all that is no call."""

import pytest

from frontend.deltas import CallArguments, CallStart, Delta, TextDelta
from frontend.first_call import FirstCall


class Script:
    """A parser whose deltas are given: those of each push, and the last ones."""

    def __init__(self, *steps: list[Delta]) -> None:
        self._steps = list(steps)

    def push(self, text: str) -> list[Delta]:
        return self._steps.pop(0)

    def finish(self) -> list[Delta]:
        return self._steps.pop(0)


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_calls_after_the_first_are_left_out(cut: int) -> None:
    kept: list[Delta] = [TextDelta("Hm"), CallStart(0, "a", "f"), CallArguments(0, "{}")]
    dropped: list[Delta] = [CallStart(1, "b", "g"), CallArguments(1, "{}"), CallStart(2, "c", "h")]
    after: list[Delta] = [TextDelta("So.")]
    deltas = kept + dropped + after
    parser = FirstCall(Script(deltas[:cut], deltas[cut:]))
    assert parser.push("x") + parser.finish() == kept + after
