import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.deltas import CallArguments, CallStart, ReasoningDelta, TextDelta
from frontend.parsing import PLAIN, parser_for
from frontend.parsing.formats import FORMATS, HERMES, QWEN3_CODER
from tests.unit.frontend.parsing.families import GOLDEN, TOOLS, Golden
from tests.unit.frontend.parsing.reading import deltas_of, pieces, read, thinking

FAMILIES = sorted(set(FORMATS) - {"none"})


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.format}: {golden.answer[:40]!r}")
def test_a_golden_answer_is_read_as_it_is_meant_whole_and_character_by_character(golden: Golden) -> None:
    whole = read(thinking(golden.format), [golden.answer], TOOLS, golden.prompt)
    assert read(thinking(golden.format), golden.answer, TOOLS, golden.prompt) == whole
    assert whole.text == golden.text
    assert whole.reasoning == golden.reasoning
    assert [(name, json.loads(arguments)) for _, name, arguments in whole.calls] == list(golden.calls)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.format}: {golden.answer[:40]!r}")
def test_an_answer_cut_short_anywhere_is_the_beginning_of_the_same_calls(golden: Golden) -> None:
    whole = read(thinking(golden.format), [golden.answer], TOOLS, golden.prompt)
    for length in range(len(golden.answer)):
        short = read(thinking(golden.format), [golden.answer[:length]], TOOLS, golden.prompt)
        assert len(short.calls) <= len(whole.calls)
        for (_, name, arguments), (_, full_name, full) in zip(short.calls, whole.calls, strict=False):
            assert name == full_name
            assert full.startswith(arguments)


def _fragments(family: str) -> st.SearchStrategy[str]:
    format = thinking(family)
    tags = [*format.markers, "<think>", "</think>", "<parameter=city>", "</parameter>", "</function>", "```json"]
    tags.sort()
    bits = ['{"name": "now", "arguments": ', '{"a": "b\\"', "{", "}", "[", "]", '"', "\\", ",", ": ", " ", "\n", "now"]
    bits += ["get_weather", "functions.now:0", "to=functions.now", "commentary", "analysis", "\ud800", "\U0001f600"]
    return st.lists(st.sampled_from(tags + bits) | st.text(string.printable, max_size=5), max_size=20).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_result_does_not_depend_on_how_the_text_is_cut(family: str, data: st.DataObject) -> None:
    examples = [golden.answer for golden in GOLDEN if golden.format == family]
    fragments = _fragments(family)
    text = "".join(data.draw(st.lists(st.sampled_from(examples) | fragments, min_size=1, max_size=3)))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    text = data.draw(st.sampled_from([text, text[start:end]]))
    prompt = data.draw(
        st.sampled_from(["", "<think>\n", "<think></think>", "<|start|>assistant<|channel|>final<|message|>"])
    )
    format = thinking(family)
    whole = read(format, [text], TOOLS, prompt)
    assert read(format, text, TOOLS, prompt) == whole
    begins = format.reasoning.begin if format.reasoning else ""
    if begins and begins not in text and not (prompt or whole.calls):
        assert whole.text == text
    assert read(format, pieces(text, data.draw(st.lists(st.integers(0, 300), max_size=6))), TOOLS, prompt) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_text_without_markers_comes_through_as_it_is(family: str) -> None:
    text = '  It is 3 < 4, f(x) = {x}; [1], "no".\n\n' + "\n" * 300 + "\ud800 end \n"
    assert read(thinking(family), text, TOOLS).text == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "body",
    ["{" * 50_000, '{"name": "now", "arguments": ' + '{"a": ' * 20_000, '{"name": "' + "n" * 100_000, " " * 100_000,
     '{"arguments": {"a": "' + "\\" * 99_999, '{"arguments": ' + "[" * 99_999, "\n<function=now>" * 5_000],
    ids=["deep", "deep arguments", "long name", "blanks", "name never comes", "no object", "many"],
)  # fmt: skip
def test_hostile_answers_are_held_within_bounds_and_lose_nothing_but_markup(family: str, body: str) -> None:
    format = thinking(family)
    opening = next(iter(sorted(filter(None, (format.begin + format.call,)))), "<|channel|>commentary to=functions.now")
    new_parser = parser_for(format, "", TOOLS, lambda count: "x" * count)
    assert new_parser is not None
    parser = new_parser()
    num_in = num_out = most_held = 0
    for part in pieces(opening + body, range(0, 100_000, 1_000)):
        num_in += len(part)
        for delta in parser.push(part):
            if isinstance(delta, TextDelta | ReasoningDelta):
                num_out += len(delta.text)
            elif isinstance(delta, CallArguments):
                num_out += len(delta.fragment)
        most_held = max(most_held, num_in - num_out)
    parser.finish()
    assert most_held < 70_000


def test_arguments_are_streamed_before_the_call_is_complete() -> None:
    begun = '<tool_call>{"name": "get_weather", "arguments": {"city": "Kö'
    assert deltas_of(HERMES, [begun], TOOLS)[:2] == [
        CallStart(0, "call_" + "x" * 24, "get_weather"), CallArguments(0, '{"city": "Kö')
    ]  # fmt: skip
    begun = "<tool_call>\n<function=get_weather>\n<parameter=city>\nKö"
    assert read(QWEN3_CODER, [begun], TOOLS).calls[0][2] == '{"city": "Kö'


def test_ids_have_the_form_that_the_template_of_the_family_wants() -> None:
    goldens = {golden.format: golden for golden in GOLDEN if len(golden.calls) == 2}
    ids = {
        name: [call[0] for call in read(thinking(name), g.answer, TOOLS, g.prompt).calls] for name, g in goldens.items()
    }
    assert ids["mistral"] == ["x" * 9, "abcdefghi"]
    assert ids["kimi"] == ["functions.get_weather:0", "functions.now:1"]
    assert ids["hermes"] == ["call_" + "x" * 24] * 2


def test_an_id_that_a_model_repeats_is_given_once() -> None:
    call = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    answer = f"<|tool_calls_section_begin|>{call}{call}<|tool_calls_section_end|>"
    assert [each[0] for each in read(thinking("kimi"), answer, TOOLS).calls] == ["functions.now:0", "functions.now:1"]


def test_a_parser_is_made_only_where_text_may_mean_something() -> None:
    def is_made(format: str, prompt: str = "", tools: bool = False) -> bool:
        chosen = (
            PLAIN if format == "none" else HERMES if format == "hermes" else thinking(format.removesuffix("+think"))
        )
        return parser_for(chosen, prompt, TOOLS if tools else [], "x".__mul__) is not None

    assert not is_made("none", tools=True)
    assert not is_made("hermes")
    assert is_made("hermes", tools=True)
    assert is_made("hermes+think")
    assert is_made("hermes+think", "<think>\n")
    assert not is_made("hermes+think", "<think>\n\n</think>\n\n")
    assert is_made("gpt_oss")


def test_calls_stay_text_when_no_tool_may_be_called() -> None:
    answer = '<think>a</think><tool_call>{"name": "now", "arguments": {}}</tool_call>'
    found = read(thinking("hermes"), answer, [])
    assert (found.reasoning, found.calls) == ("a", ())
    assert found.text == '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
