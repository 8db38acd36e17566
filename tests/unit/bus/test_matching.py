"""Subject filters of the broker in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.testing.matching import matches, overlaps

patterns = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4).flatmap(
    lambda tokens: st.sampled_from([".".join(tokens), ".".join([*tokens, ">"])])
)
subjects = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "subject", "is_match"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
    ],
)
def test_matching(pattern, subject, is_match):
    assert matches(pattern, subject) is is_match


@given(patterns, patterns, subjects)
def test_filters_that_take_one_subject_overlap(one, other, subject):
    if matches(one, subject) and matches(other, subject):
        assert overlaps(one, other)
    assert overlaps(one, other) == overlaps(other, one)


def test_disjoint_filters_do_not_overlap():
    assert not overlaps("a.b", "a.c")
    assert not overlaps("a.b", "a.b.c")
    assert not overlaps("a.*", "b.>")
    assert overlaps("a.*", "a.>")
