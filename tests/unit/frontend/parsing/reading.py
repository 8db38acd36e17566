"""Runs a parser over a text in pieces and joins what comes out."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from frontend.deltas import CallStart, Delta, ReasoningDelta, TextDelta
from frontend.openai.tools import Tool
from frontend.parsing import Format, parser_for
from frontend.parsing.formats import FORMATS, THINK, THINK_BRACKETS, THOUGHT_PROCESS

_REASONINGS = {"mistral": THINK_BRACKETS, "granite": THOUGHT_PROCESS}


class Read(NamedTuple):
    """A whole answer; calls are `(id, name, arguments)`."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, str, str], ...]


def thinking(name: str) -> Format:
    """Return the family's format with the reasoning that its thinking models have."""
    found = FORMATS[name]
    return found if found.is_harmony else msgspec.structs.replace(found, reasoning=_REASONINGS.get(name, THINK))


def deltas_of(format: Format, parts: Iterable[str], tools: Sequence[Tool], prompt: str = "") -> list[Delta]:
    new_parser = parser_for(format, prompt, tools, lambda count: "x" * count)
    assert new_parser is not None
    parser = new_parser()
    deltas = [delta for part in parts for delta in parser.push(part)]
    return deltas + parser.finish()


def read(format: Format, parts: Iterable[str], tools: Sequence[Tool], prompt: str = "") -> Read:
    text = reasoning = ""
    calls: list[tuple[str, str, str]] = []
    for delta in deltas_of(format, parts, tools, prompt):
        if isinstance(delta, TextDelta):
            text += delta.text
        elif isinstance(delta, ReasoningDelta):
            reasoning += delta.text
        elif isinstance(delta, CallStart):
            assert delta.call == len(calls)
            calls.append((delta.call_id, delta.name, ""))
        else:
            assert delta.call == len(calls) - 1
            call_id, name, arguments = calls[-1]
            calls[-1] = call_id, name, arguments + delta.fragment
    return Read(text, reasoning, tuple(calls))


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[start:end] for start, end in pairwise(places)]
