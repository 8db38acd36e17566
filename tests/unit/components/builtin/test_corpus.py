"""The corpus and what is made of it."""

import random

import pytest

from components.builtin.phrasing import questions_of, slip, vary
from components.builtin.reading import Entry, is_held_out, normal, parse_entries, parse_lists, parse_pairs

FORMS = {
    "singular": ("What is {t}?", "Define {b}."),
    "plural": ("What are {t}?",),
    "openings": ("Hi, ",),
    "closings": (" please",),
    "swaps": ("What is=What's",),
    "fillers": ("really",),
    "small_words": ("is", "a"),
}


def test_an_entry_has_terms_questions_and_an_answer_of_several_lines() -> None:
    text = "# a note\n\nT: a slot | +slots\nQ: Why slots?\nA: One line.\n\nAnd more.\n\nQ: Next?\nA: Yes."
    assert parse_entries(text) == [
        Entry(("a slot", "+slots"), ("Why slots?",), "One line.\n\nAnd more."),
        Entry((), ("Next?",), "Yes."),
    ]


@pytest.mark.parametrize("text", ["Q: no answer", "A: no question", "Q: one\nstray\nA: two"])
def test_a_broken_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an entry"):
        parse_entries(text)


def test_lists_are_divided_by_bars_or_spaces() -> None:
    assert parse_lists("a: x y x\nb: New York|Rome") == {"a": ("x", "y"), "b": ("New York", "Rome")}


def test_the_exam_pairs_a_known_question_with_another_wording() -> None:
    assert parse_pairs("# note\nWhat is a slot? => Slots, what are they?") == (
        ("What is a slot?", "Slots, what are they?"),
    )


def test_terms_are_asked_for_in_every_form() -> None:
    asked = questions_of(Entry(("a slot", "+slots"), ("why slots?",), "Room."), FORMS)
    assert asked == ["Why slots?", "What is a slot?", "Define slot.", "What are slots?"]


def test_case_and_marks_do_not_make_a_question_held_out() -> None:
    assert normal("What IS a `slot`?!") == "what is a slot"
    assert is_held_out("What is a slot?") == is_held_out("what is a slot")


def test_varying_depends_on_the_seed_only() -> None:
    first, second = ([vary("What is a KV block?", FORMS, random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 5


def test_a_slip_changes_one_long_word_at_most() -> None:
    for seed in range(100):
        words = slip("what is a worker", random.Random(seed)).split()
        assert words[:3] == ["what", "is", "a"]
        assert abs(len(words[3]) - 6) <= 1
