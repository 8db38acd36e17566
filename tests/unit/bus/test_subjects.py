"""Subjects: built and parsed in one place, whatever the outside names are."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import BadConfig, Malformed
from bus.subjects import ANY_WORKER, Subjects, slug

TOKEN = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


@given(st.text(min_size=0, max_size=300))
def test_a_slug_is_one_token(name: str) -> None:
    token = slug(name)
    assert TOKEN.match(token)
    assert len(token) <= 64
    assert slug(token) == token


def test_slugs_keep_names_apart() -> None:
    names = ["Qwen/Qwen3", "qwen-qwen3", "Qwen.Qwen3", "qwen qwen3", "../../etc/passwd", "a.>", "*", ">", "", "\ud800"]
    assert len({slug(name) for name in names}) == len(names)


def test_build_and_parse() -> None:
    subjects = Subjects("acme")
    subject = subjects.work("tiny", "both", ANY_WORKER, "standard")
    assert subject == "acme.work.v1.tiny.both.any.standard"
    assert subjects.parse(subject) == ("work", ("tiny", "both", "any", "standard"))


@pytest.mark.parametrize(
    "subject", ["", "busway", "busway.out", "busway.out.v1", "other.out.v1.f.w", "busway.out.v2.f.w"]
)
def test_foreign_subjects_are_malformed(subject: str) -> None:
    with pytest.raises(Malformed):
        Subjects().parse(subject)


@pytest.mark.parametrize("namespace", ["", "a.b", "*", ">", "Busway", "a b", "a\n", "-a"])
def test_a_namespace_is_one_token(namespace: str) -> None:
    with pytest.raises(BadConfig):
        Subjects(namespace)
