"""Markers that are special tokens reach the parser, and nobody else."""

import json
import re

import pytest
from tokenizers import AddedToken, Tokenizer

from bus.messages.fleet import ModelCard
from frontend.deltas import CallArguments, CallStart, TextDelta
from frontend.model import build_model
from frontend.parsing import parser_for
from frontend.pieces import Pieces
from tests.unit.frontend.parsing.families import GOLDEN, TOOLS, Golden
from tests.unit.frontend.parsing.reading import thinking
from tests.unit.frontend.parsing.templates import MISTRAL

ANSWER = 'I look.[TOOL_CALLS]now[ARGS]{"a": "é"}<|im_end|>'


def test_special_tokens_that_mean_something_are_parsed_and_the_end_is_not_shown(
    oracle: Tokenizer, card: ModelCard, files: dict[str, bytes]
) -> None:
    tokenizer = Tokenizer.from_str(oracle.to_str())
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True), AddedToken("[ARGS]", special=True)])
    made = files | {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"chat_template": MISTRAL, "eos_token": "<|im_end|>"}).encode(),
    }
    model = build_model(card, made)
    tokens = tokenizer.encode(ANSWER, add_special_tokens=False).ids
    assert model.format.name == "mistral"
    assert {model.vocabulary.raw[token] for token in model.marker_tokens} == {b"[TOOL_CALLS]", b"[ARGS]"}

    new_parser = parser_for(model.format, "[/INST]", TOOLS, "x".__mul__)
    assert new_parser is not None
    parser = new_parser()
    pieces = Pieces(model.vocabulary, shown=model.marker_tokens)
    deltas = []
    for token in tokens:
        pieces.push(token)
        deltas += parser.push(pieces.take()[0])
    deltas += parser.finish()
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "I look."
    assert [delta for delta in deltas if isinstance(delta, CallStart)] == [CallStart(0, "x" * 9, "now")]
    assert "".join(each.fragment for each in deltas if isinstance(each, CallArguments)) == '{"a": "é"}'
    assert model.vocabulary.decode(tokens) == 'I look.now{"a": "é"}'


def test_the_configuration_turns_parsing_off(card: ModelCard, files: dict[str, bytes]) -> None:
    model = build_model(card, files, "none")
    assert parser_for(model.format, "", TOOLS, "x".__mul__) is None


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.format}: {golden.answer[:40]!r}")
def test_every_special_token_of_a_golden_answer_is_a_marker(golden: Golden) -> None:
    written = set(re.findall(r"<[|｜][^<>]*[|｜]>|\[/?[A-Z_]{3,}\]", golden.answer))
    assert written <= thinking(golden.format).markers
