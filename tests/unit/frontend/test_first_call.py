"""Clients that want no parallel calls get the first one; those that want a call get no half one as text."""

import pytest

from frontend.deltas import CallArguments, CallStart, Delta, TextDelta
from frontend.first_call import FirstCall, ForcedCalls
from frontend.parsing import Format, parser_for, tool_grammar
from frontend.parsing.formats import GPT_OSS, HERMES, LLAMA3, MISTRAL
from tests.unit.frontend.parsing.families import TOOLS


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


@pytest.mark.parametrize("format", [HERMES, LLAMA3, MISTRAL, GPT_OSS], ids=lambda format: format.name)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_half_a_call_is_no_text_where_a_call_is_forced(format: Format, size: int) -> None:
    call = tool_grammar(format, TOOLS, is_parallel=False).calls[0]
    prompt = "<|start|>assistant" if format.is_harmony else ""
    new_parser = parser_for(format, prompt, TOOLS, lambda count: "x" * count)
    assert new_parser is not None
    for end in range(len(call.begin) + 1):
        parser = ForcedCalls(new_parser())
        parts = [call.begin[at : min(at + size, end)] for at in range(0, end, size)]
        deltas = [delta for part in parts for delta in parser.push(part)] + parser.finish()
        assert all(isinstance(delta, CallStart) for delta in deltas), call.begin[:end]
