"""A turn that a family's template renders is read back by the parser that its markers choose."""

import json
from typing import get_args

import pytest

from bus.config import ParserName
from frontend.parsing import detect_format
from frontend.parsing.formats import FORMATS
from frontend.template import ChatTemplate
from tests.unit.frontend.parsing.families import TOOLS
from tests.unit.frontend.parsing.reading import read
from tests.unit.frontend.parsing.templates import TEMPLATES

ARGUMENTS = {"city": 'Köln "<b>"\n{x}', "days": 2, "hourly": True, "near": ["Bonn", "Aachen"]}
USER = {"role": "user", "content": "Sun?"}
CALL = {
    "id": "functions.get_weather:0",
    "type": "function",
    "function": {"name": "get_weather", "arguments": ARGUMENTS},
}
TURN = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "So.", "thinking": "So."}
RESULT = {
    "role": "tool",
    "content": '{"sky": "clear"}',
    "tool_call_id": "functions.get_weather:0",
    "name": "get_weather",
}
SHOWN = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"a": {}}}}}
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_family_is_known_by_its_template(family: str) -> None:
    assert detect_format(TEMPLATES[family]).name == family


@pytest.mark.parametrize("family", TEMPLATES)
def test_what_the_template_renders_for_a_call_is_read_as_that_call(family: str) -> None:
    template = ChatTemplate(TEMPLATES[family], SPECIAL)
    before = template.render([USER], SHOWN)
    after = template.render([USER, TURN, RESULT, USER], SHOWN)
    assert "get_weather" in before
    assert "clear" in after
    prompt = before.removesuffix("<think>\n")
    assert after.startswith(prompt)
    found = read(detect_format(TEMPLATES[family]), [after[len(prompt) :]], TOOLS, prompt)
    assert found.calls[0][1] == "get_weather"
    assert json.loads(found.calls[0][2]) == ARGUMENTS
    if family not in ("llama3", "deepseek", "granite"):
        assert found.reasoning == "So."


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_plain_talk_with_reasoning_renders(family: str) -> None:
    answer = {"role": "assistant", "content": "It is clear.", "reasoning_content": "So."}
    template = ChatTemplate(TEMPLATES[family], SPECIAL)
    assert "It is clear." in template.render([USER, answer, USER])
    assert "Sun?" in template.render([{"role": "system", "content": "Be brief."}, USER], SHOWN)


def test_reasoning_that_the_template_closes_is_off() -> None:
    template = ChatTemplate(TEMPLATES["hermes"], SPECIAL)
    prompt = template.render([USER], None, {"enable_thinking": False})
    assert read(detect_format(TEMPLATES["hermes"]), ["<think> is a tag."], TOOLS, prompt).text == "<think> is a tag."


def test_the_configuration_chooses_a_parser_whatever_the_template_says() -> None:
    assert detect_format(None).name == "hermes"
    assert detect_format(TEMPLATES["hermes"], "none") == FORMATS["none"]
    chosen = detect_format(TEMPLATES["hermes"], "mistral")
    assert chosen.name == "mistral"
    assert chosen.reasoning is not None
    assert chosen.reasoning.end == "</think>"


def test_the_configuration_knows_every_family() -> None:
    assert set(get_args(ParserName)) == {"auto", *FORMATS}


@pytest.mark.parametrize(
    ("sign", "family"),
    [
        ("<｜DSML｜function_calls>", "deepseek_v32"),
        ("<tool_calls>", "minimax_m1"),
        ("<|start_header_id|> {'name': x, \"parameters\": y}", "llama3"),
        ("<think>", "hermes"),
    ],
)
def test_other_signs(sign: str, family: str) -> None:
    assert detect_format(sign).name == family


def test_a_template_that_only_thinks_has_reasoning() -> None:
    assert detect_format("{{ content.split('</think>')[-1] }}").reasoning is not None
    assert detect_format("{{ content }}").reasoning is None
