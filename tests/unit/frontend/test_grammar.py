"""What clients ask of an answer's form becomes one grammar, or a clear refusal."""

import json
from pathlib import Path
from typing import Any

import llguidance
import pytest

from bus.errors import InvalidRequest
from frontend.grammar import grammar_for
from frontend.openai.body import chat_body
from frontend.parsing import PLAIN, Format
from frontend.parsing.formats import FORMATS, GPT_OSS, GRANITE, HERMES, LLAMA3, MISTRAL, THINK
from frontend.rules import MAX_SCHEMA
from frontend.vocabulary import Vocabulary, read_vocabulary

FILE = Path(__file__).parents[3] / "components" / "builtin" / "model" / "tokenizer.json"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g"}},
]
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
EMPTY = Vocabulary({}, ())


@pytest.fixture(scope="session")
def tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(str(FILE), n_vocab=2048, eos_token=[2])


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return read_vocabulary(FILE.read_bytes(), [2])


def grammar(of: Vocabulary = EMPTY, format: Format = HERMES, tail: str = "", **fields: Any) -> str:
    body = {"messages": [{"role": "user", "content": "x"}]} | fields
    return grammar_for(chat_body.decode(json.dumps(body).encode())[0], format, of, tail)


def fits(tokenizer: llguidance.LLTokenizer, grammar: str, text: str) -> bool:
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    tokens = tokenizer.tokenize_str(text, parse_special=True)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": JSON}, '{"a": 5}', '{"a": "5"}'),
        ({"response_format": JSON}, '{\n  "a": 5\n}', '{"a": 5, "b": 1}'),
        ({"response_format": {"type": "json_object"}}, '{"z": [1, null]}', "[1]"),
        ({"structured_outputs": {"regex": "a/b+"}}, "a/bb", "a/c"),
        ({"structured_outputs": {"choice": ["yes", 'no "x"']}}, 'no "x"', "no"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b" root'}}, "bba", "bb"),
        ({"structured_outputs": {"grammar": 'start: "a" x\nx: /b+/'}}, "abb", "a"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, '{"a":1}', "{}"),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"structured_outputs": {"choice": ["a", "ab"]}}, "a", "b"),
        ({"structured_outputs": {"choice": ["a", "ab"]}}, "ab", "aba"),
        ({"structured_outputs": {"choice": [f"n{number}" for number in range(4096)]}}, "n4095", "n4096"),
        ({"structured_outputs": {"grammar": 'root ::= "a"' + "\n" * 120_000}}, "a", "b"),
        ({"response_format": {"type": "grammar", "grammar": 'start: "a" x\nx: /b+/'}}, "abb", "a"),
        ({"guided_json": SCHEMA}, '{"a":1}', "{}"),
        ({"guided_choice": ["x"]}, "x", "y"),
        ({"guided_json": {"type": "object", "properties": {}}}, "{}", '{"a": 1}'),
        (
            {"guided_json": {"properties": {"a": {"properties": {"b": {}}, "type": "object"}}}},
            '{"a":{}}',
            '{"a":{"c":1}}',
        ),
        ({"guided_json": {"type": "object", "properties": {"a": {}}, "additionalProperties": True}}, '{"c":1}', "[]"),
        (
            {"guided_json": {"type": "object", "properties": {"properties": {"type": "integer"}}}},
            '{"properties":1}',
            "1",
        ),
        ({"tools": TOOLS, "response_format": JSON, "tool_choice": "auto"}, '{"a":1}', "Hi"),
    ],
)
def test_a_grammar_takes_what_it_should(
    tokenizer: llguidance.LLTokenizer, fields: dict[str, Any], good: str, bad: str
) -> None:
    made = grammar(**fields)
    assert fits(tokenizer, made, good)
    assert not fits(tokenizer, made, bad)


F, G = (
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
)


def allow(name: str, mode: str = "required") -> dict[str, Any]:
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": name}}]}
    return {"type": "allowed_tools", "allowed_tools": allowed}


def test_tools_that_must_be_called_are(tokenizer: llguidance.LLTokenizer, vocabulary: Vocabulary) -> None:
    required = grammar(vocabulary, tools=TOOLS, tool_choice="required")
    assert all(fits(tokenizer, required, text) for text in (F, G, f"{F}\n{G}"))
    assert not any(
        fits(tokenizer, required, text) for text in ("Hi", "{}", F.replace("1", '"1"'), F.replace('"f"', '"h"'))
    )
    single = grammar(vocabulary, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert fits(tokenizer, single, F)
    assert not fits(tokenizer, single, f"{F}\n{G}")
    named = grammar(vocabulary, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}})
    assert fits(tokenizer, named, G)
    assert not fits(tokenizer, named, F)
    allowed = grammar(vocabulary, tools=TOOLS, tool_choice=allow("g"))
    assert fits(tokenizer, allowed, f"{G}\n{G}")
    assert not fits(tokenizer, allowed, F)
    assert not grammar(vocabulary, tools=TOOLS, tool_choice=allow("g", "auto"))


SUM = 'start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/\n'
PATCH = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: "*** Add File: " filename LF add_line+
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

%import common.LF
"""


def custom(name: str, **grammar: str) -> dict[str, Any]:
    format = {"type": "grammar", "grammar": grammar} if grammar else {"type": "text"}
    return {"type": "custom", "custom": {"name": name, "format": format}}


def written(name: str, text: str) -> str:
    return f"<tool_call>\n<function={name}>\n<parameter=input>\n{text}\n</parameter>\n</function>\n</tool_call>"


def call(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


@pytest.mark.parametrize("format", [HERMES, GRANITE, MISTRAL])
def test_the_input_of_a_custom_tool_follows_its_grammar(
    tokenizer: llguidance.LLTokenizer, vocabulary: Vocabulary, format: Format
) -> None:
    tools = [custom("sum", syntax="lark", definition=SUM), custom("word", syntax="regex", definition="a[b/]+"), *TOOLS]

    def shown(text: str) -> str:
        return text.replace("<tool_call>", format.begin).replace("</tool_call>", format.end)

    for choice in ("auto", "required", {"type": "custom", "custom": {"name": "sum"}}):
        made = grammar(vocabulary, format, tools=tools, tool_choice=choice)
        assert fits(tokenizer, made, shown(written("sum", "1+22"))), choice
        assert not fits(tokenizer, made, shown(written("sum", "1+x"))), choice
        assert not fits(tokenizer, made, shown(call("sum", input="1+22"))), choice
        assert fits(tokenizer, made, "Two\n\nare one.") == (choice == "auto")
    if format is HERMES:
        both = f"{call('word', input='a/b')}\n{written('sum', '7')}"
        for choice in ("auto", "required"):
            made = grammar(vocabulary, format, tools=tools, tool_choice=choice)
            assert fits(tokenizer, made, both)
            assert not fits(tokenizer, made, call("word", input="b"))
            assert fits(tokenizer, made, call("f", a=1))
        auto = grammar(vocabulary, format, tools=tools)
        assert fits(tokenizer, auto, f"Let me see.\n{both}")
        assert fits(tokenizer, auto, call("f", a="x")), "nothing was promised of this one's arguments"


def test_a_grammar_in_lark_may_be_as_real_ones_are(tokenizer: llguidance.LLTokenizer, vocabulary: Vocabulary) -> None:
    made = grammar(vocabulary, tools=[custom("apply_patch", syntax="lark", definition=PATCH)])
    patch = '*** Begin Patch\n*** Add File: a.py\n+x = "\\n"\n+\n*** End Patch'
    assert fits(tokenizer, made, f"Here:\n{written('apply_patch', patch)}")
    assert fits(tokenizer, made, written("apply_patch", patch + "\n"))
    assert not fits(tokenizer, made, written("apply_patch", patch.replace("+x", "x")))


def test_with_a_format_for_text_a_tool_may_be_called_as_well(
    tokenizer: llguidance.LLTokenizer, vocabulary: Vocabulary
) -> None:
    made = grammar(vocabulary, tools=TOOLS, response_format=JSON)
    assert all(fits(tokenizer, made, text) for text in ('{"a": 5}', F, G, call("f", b=[])))
    assert not any(fits(tokenizer, made, text) for text in ("Hi", call("h")))
    strict = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    assert not fits(tokenizer, grammar(vocabulary, tools=[strict], response_format=JSON), call("f", b=[]))
    forced = grammar(vocabulary, tools=TOOLS, response_format=JSON, tool_choice="required")
    assert fits(tokenizer, forced, F)
    assert not fits(tokenizer, forced, '{"a": 5}')
    none = grammar(vocabulary, tools=TOOLS, response_format=JSON, tool_choice="none")
    assert not fits(tokenizer, none, F)


def test_a_thought_comes_before_what_is_asked(tokenizer: llguidance.LLTokenizer, vocabulary: Vocabulary) -> None:
    thinking = Format(name="hermes", begin="<tool_call>", end="</tool_call>", reasoning=THINK)
    for fields, answer in (({"tools": TOOLS, "tool_choice": "required"}, F), ({"response_format": JSON}, '{"a":1}')):
        made = grammar(vocabulary, thinking, "<|im_start|>assistant\n<think>\n", **fields)
        assert fits(tokenizer, made, f"Let me see {{}}.\n</think>\n\n{answer}")
        assert not fits(tokenizer, made, "Let me see")
        assert fits(tokenizer, grammar(vocabulary, thinking, "assistant\n", **fields), answer)
    made = grammar(vocabulary, thinking, "assistant\n<think>\n", tools=[custom("sum", syntax="lark", definition=SUM)])
    assert all(fits(tokenizer, made, f"So.\n</think>\n{text}") for text in ("Hm.", written("sum", "5")))
    assert not fits(tokenizer, made, f"So.\n</think>\n{written('sum', 'x')}")


@pytest.mark.parametrize("format", [each for each in FORMATS.values() if each is not PLAIN], ids=lambda each: each.name)
def test_every_family_has_a_sound_grammar(format: Format) -> None:
    ruled = [*TOOLS, custom("sum", syntax="lark", definition=SUM)]
    special = Vocabulary({}, (), {mark: 1000 + number for number, mark in enumerate(sorted(format.markers))})
    for known in (EMPTY, special):
        assert grammar(known, format, tools=TOOLS, tool_choice="required")
        assert grammar(known, format, tools=ruled, tool_choice="required")
        assert bool(grammar(known, format, tools=ruled)) != (format in (LLAMA3, GPT_OSS)), "calls that nothing marks"
        assert grammar(known, format, tools=ruled, response_format=JSON)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "frob"}}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "x ::= ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": ["x" * (MAX_SCHEMA + 1)]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex"),
        ({"response_format": JSON, "guided_regex": "a"}, "response_format"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_json": json.loads('{"allOf":' * 60 + "[" + "{}" + "]" + "}" * 60)}, "guided_json"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allow("h")}, "tool_choice"),
        ({"tools": [custom("c", syntax="lark", definition="start: x")]}, "tools"),
        ({"tools": [custom("c", syntax="regex", definition="(")]}, "tools"),
        ({"tools": [custom("c", syntax="lark", definition="x" * (MAX_SCHEMA + 1))]}, "tools"),
        ({"response_format": {"type": "grammar"}}, "response_format.grammar"),
        (
            {
                "tools": TOOLS,
                "tool_choice": "required",
                "response_format": {**JSON, "json_schema": {"schema": {"type": 5}}},
            },
            "response_format",
        ),
        ({"tools": [{"function": {"name": "f", "parameters": {"type": "frob"}}}], "tool_choice": "required"}, "tools"),
    ],
)
def test_what_cannot_be_enforced_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar(**fields)
    assert caught.value.param == param


def test_what_is_wrong_with_an_expression_is_told() -> None:
    with pytest.raises(InvalidRequest, match="unclosed group"):
        grammar(tools=[custom("c", syntax="regex", definition="(a")])
    with pytest.raises(InvalidRequest, match="unclosed group"):
        grammar(guided_regex="(a")


def test_a_model_whose_calls_nobody_reads_cannot_be_forced() -> None:
    with pytest.raises(InvalidRequest):
        grammar(EMPTY, PLAIN, tools=TOOLS, tool_choice="required")


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"tools": TOOLS, "tool_choice": "auto"}])
def test_what_asks_for_nothing_has_no_grammar(fields: dict[str, Any]) -> None:
    assert grammar(**fields) == ""
