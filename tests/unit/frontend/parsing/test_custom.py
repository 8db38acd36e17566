"""Custom tools are called with a text, however their calls are written and cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.openai.tools import CustomSpec, GrammarText, InputGrammar, Tool
from frontend.parsing import tool_grammar
from frontend.parsing.formats import FORMATS, HERMES
from tests.unit.frontend.parsing.families import TOOLS
from tests.unit.frontend.parsing.reading import pieces, read, thinking

FAMILIES = sorted(set(FORMATS) - {"none"})
LARK = GrammarText(InputGrammar("start: /(?s:.*)/", "lark"))
PATCH = Tool(type="custom", custom=CustomSpec(name="patch", format=LARK))
SAY = Tool(type="custom", custom=CustomSpec(name="say"))
OFFERED = [PATCH, SAY, *TOOLS]


def called(arguments: str, cuts: list[int]) -> str:
    """Return what `say` was called with, if its arguments are written so and come in pieces."""
    answer = f'<tool_call>{{"name": "say", "arguments": {arguments}}}</tool_call>'
    found = read(HERMES, pieces(answer, cuts), OFFERED)
    assert [name for _, name, _ in found.calls] == ["say"]
    return found.calls[0][2]


@given(
    text=st.text(), is_ascii=st.booleans(), blanks=st.sampled_from(["", " ", "\n\t "]), cuts=st.lists(st.integers(0))
)
def test_the_input_comes_out_as_it_was_meant(text: str, is_ascii: bool, blanks: str, cuts: list[int]) -> None:
    quoted = json.dumps(text, ensure_ascii=is_ascii)
    assert called(f'{blanks}{{{blanks}"input"{blanks}:{blanks}{quoted}{blanks}}}', cuts) == text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("{}", "{}"),
        ('{"a": 1}', '{"a": 1}'),
        ('{"inputs": "x"}', '{"inputs": "x"}'),
        ('{"input": {"a": "b"}}', '{"input": {"a": "b"}}'),
        ('{"input": "x", "more": ["y"]}', "x"),
        (f'{{{" " * 300}"input": "x"}}', f'{{{" " * 300}"input": "x"}}'),
        (r'{"input": "a\ud83d"}', "a\ufffd"),
        (r'{"input": "\ud83d\u0041\udc00"}', "\ufffdA\ufffd"),
        (r'{"input": "\ud83d\\n\ud83d\n"}', "\ufffd\\n\ufffd\n"),
        (r'{"input": "\u12"}', "u12"),
        (r'{"input": "\d\/\u00e9"}', "d/é"),
    ],
)
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0), max_size=8))
def test_what_is_written_otherwise_is_shown_as_well_as_can_be(arguments: str, told: str, cuts: list[int]) -> None:
    assert called(arguments, cuts) == told


def test_half_an_input_is_the_beginning_of_it() -> None:
    answer = '<tool_call>{"name": "say", "arguments": {"input": "Köln \\ud83d\\ude00\\n!"}}</tool_call>'
    shown = [found.calls[0][2] for end in range(len(answer)) if (found := read(HERMES, [answer[:end]], OFFERED)).calls]
    assert all("Köln 😀\n!".startswith(text) for text in shown)
    assert {"", "Köln ", "Köln 😀", "Köln 😀\n!"} <= set(shown)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["x", '*** Begin\n+a = "\\n" <b>\n\n', "{", "[1]", ""])
def test_a_text_that_a_grammar_rules_is_written_as_it_is_in_every_family(family: str, text: str) -> None:
    format = thinking(family)
    prompt = "<|start|>assistant" if format.is_harmony else ""
    described = tool_grammar(format, [PATCH, TOOLS[1]], is_parallel=True)
    patch, now = described.calls
    assert (patch.grammar, now.grammar) == (PATCH.grammar, None)
    written = f"{patch.begin}{text}{patch.end}"
    if described.may_repeat:
        written = described.separator.join([written, f"{now.begin}{{}}{now.end}", written])
    for parts in ([written], written):
        found = read(format, parts, OFFERED, prompt)
        calls = [(name, arguments) for _, name, arguments in found.calls]
        assert calls == [("patch", text), ("now", "{}"), ("patch", text)][: 3 if described.may_repeat else 1]
        assert found.text == found.reasoning == ""


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_result_does_not_depend_on_how_the_text_is_cut(family: str, data: st.DataObject) -> None:
    format = thinking(family)
    calls = [f"{call.begin}{body}{call.end}" for call in tool_grammar(format, OFFERED, is_parallel=True).calls[:2]
             for body in ('{"input": "a\\u00e9"}', "a\nb")]  # fmt: skip
    bits = [
        "<function=",
        "patch",
        ">",
        "<parameter=input>",
        "</parameter>",
        "\n",
        '{"input"',
        ": ",
        '"\\u00',
        format.begin,
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(calls) | st.sampled_from(bits), min_size=1, max_size=5)))
    text = text[: data.draw(st.integers(0, len(text)))]
    whole = read(format, [text], OFFERED)
    assert read(format, text, OFFERED) == whole
    assert read(format, pieces(text, data.draw(st.lists(st.integers(0, 300), max_size=6))), OFFERED) == whole
