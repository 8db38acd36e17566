"""What a grammar forces, the family's parser reads."""

import json

import pytest

from bus.errors import InvalidRequest
from frontend.parsing import PLAIN, tool_grammar
from frontend.parsing.formats import FORMATS
from tests.unit.frontend.parsing.families import TOOLS
from tests.unit.frontend.parsing.reading import read, thinking

FAMILIES = sorted(set(FORMATS) - {"none"})


@pytest.mark.parametrize("family", FAMILIES)
def test_forced_calls_are_read_as_calls(family: str) -> None:
    format = thinking(family)
    prompt = "<|start|>assistant" if format.is_harmony else ""
    grammar = tool_grammar(format, TOOLS, is_parallel=True)
    assert grammar.may_repeat != format.is_harmony
    calls = grammar.calls if grammar.may_repeat else grammar.calls[:1]
    answer = grammar.separator.join(f'{call.begin}{{"city": "a"}}{call.end}' for call in calls)
    found = read(format, [answer], TOOLS, prompt)
    assert [(name, json.loads(arguments)) for _, name, arguments in found.calls] == [
        (name, {"city": "a"}) for name in ("get_weather", "now")[: len(calls)]
    ]
    assert found.text == found.reasoning == ""


def test_schemas_are_those_of_the_tools() -> None:
    grammar = tool_grammar(FORMATS["hermes"], TOOLS, is_parallel=False)
    assert grammar.calls[0].begin == '<tool_call>\n{"name": "get_weather", "arguments": '
    assert grammar.calls[0].schema == bytes(TOOLS[0].function.parameters)
    assert json.loads(grammar.calls[1].schema) == {"type": "object"}


def test_no_call_is_forced_that_nobody_reads() -> None:
    with pytest.raises(InvalidRequest, match="none can be required"):
        tool_grammar(PLAIN, TOOLS, is_parallel=True)
