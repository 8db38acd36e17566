"""Text that comes token by token is the text of all tokens, whatever the cuts."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from frontend.detokenize import Detokenizer, StopFinder
from frontend.model import ServedModel

# The fixtures are shared and never changed.
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(tokens=st.lists(st.integers(0, 511), max_size=24))
def test_pieces_join_to_what_hugging_face_decodes(model: ServedModel, oracle: Tokenizer, tokens: list[int]) -> None:
    tokens = [token % len(model.vocabulary) for token in tokens]
    detokenizer = Detokenizer(model.vocabulary)
    pieces = [detokenizer.push(token) for token in tokens]
    text = "".join(pieces) + detokenizer.finish()
    assert text == model.vocabulary.decode(tokens) == oracle.decode(tokens, skip_special_tokens=True)


@relaxed
@given(text=st.text(max_size=60))
def test_no_piece_of_whole_text_is_a_broken_character(model: ServedModel, oracle: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(model.vocabulary)
    tokens = oracle.encode(text).ids
    joined = "".join(detokenizer.push(token) for token in tokens)
    assert joined == text
    assert detokenizer.finish() == ""


def test_special_tokens_show_nothing_even_inside_a_character(model: ServedModel, oracle: Tokenizer) -> None:
    raw = {bytes(model.vocabulary.raw[token]): token for token in range(len(model.vocabulary))}
    detokenizer = Detokenizer(model.vocabulary)
    assert [detokenizer.push(raw[b"\xc3"]), detokenizer.push(2), detokenizer.push(raw[b"\xa9"])] == ["", "", "é"]


def test_tokens_outside_the_vocabulary_show_nothing(model: ServedModel) -> None:
    detokenizer = Detokenizer(model.vocabulary)
    assert detokenizer.push(2**32 - 1) == ""


def find_stop(text: str, stops: list[str]) -> str:
    """Cut at the stop string that is complete first; of those that end together, at the longest."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=8),
)
def test_stop_strings_do_not_depend_on_the_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    finder = StopFinder(stops)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = "".join(finder.push(text[a:b]) for a, b in itertools.pairwise(bounds))
    shown += finder.finish()
    assert shown == find_stop(text, stops)
    assert finder.has_stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["Hel", "lo ST"], ["Hel", "lo "]),
        (["ST", "O", "x"], ["", "", "STOx"]),
        (["a", "STOP", "b"], ["a", "", ""]),
        (["aSTO", "Pb"], ["a", ""]),
    ],
)
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], shown: list[str]) -> None:
    finder = StopFinder(["STOP"])
    assert [finder.push(piece) for piece in pieces] == shown


def test_a_long_stop_string_that_almost_matches_is_shown_at_the_end() -> None:
    finder = StopFinder(["a" * 1000 + "b"])
    shown = "".join(finder.push("a") for _ in range(1500)) + finder.finish()
    assert shown == "a" * 1500
