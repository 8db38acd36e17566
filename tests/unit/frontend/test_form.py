"""Forms: the same in pieces of any size, and hostile ones refused."""

import pytest

from bus.errors import Malformed
from frontend.errors import UnsupportedMediaType
from frontend.form import MAX_FIELD_BYTES, MAX_PARTS, Form, safe_name

TYPE = b"multipart/form-data; boundary=xyz"


def part(name: str, value: bytes, filename: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 64, 4096])
def test_pieces_do_not_matter(size: int) -> None:
    content = b"a\r\n--xy\r\n-" * 20
    data = part("purpose", b"batch") + part("file", content, "../x.jsonl") + b"--xyz--\r\n"
    form = Form(TYPE)
    found = b"".join(form.feed(data[start : start + size]) for start in range(0, len(data), size))
    assert (found, form.fields, form.filename, form.is_complete) == (content, {"purpose": "batch"}, "x.jsonl", True)


@pytest.mark.parametrize("header", [b"", b"application/json", b"text/plain; boundary=x"])
def test_other_types_are_refused(header: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        Form(header)


@pytest.mark.parametrize("header", [b"multipart/form-data", b"multipart/form-data; boundary=" + b"x" * 300])
def test_boundaries_that_cannot_be_used_are_refused(header: bytes) -> None:
    with pytest.raises(Malformed):
        Form(header)


@pytest.mark.parametrize(
    "data",
    [
        b"no boundary at all",
        part("a", b"x" * (MAX_FIELD_BYTES + 1)),
        part("a", b"") * (MAX_PARTS + 1),
        part("file", b"a", "a") + part("file", b"b", "b"),
        b"--xyz\r\n" + b"x" * 10_000 + b": y\r\n\r\n",
        b"--xyz\r\n" + b"a: b\r\n" * 1000,
    ],
)
def test_hostile_bodies_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Form(TYPE).feed(data)


def test_a_body_that_ends_early_is_not_complete() -> None:
    form = Form(TYPE)
    form.feed(part("file", b"abc", "a")[:-5])
    assert not form.is_complete


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.jsonl", "y.jsonl"),
        ("..", "upload"),
        ("", "upload"),
        ("a\r\nb\x00c", "abc"),
        ("n" * 1000, "n" * 255),
    ],
)
def test_names_are_no_paths(name: str, safe: str) -> None:
    assert safe_name(name) == safe
