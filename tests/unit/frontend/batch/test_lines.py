"""Lines of a batch: the same however the file is cut into pieces, and each error at its line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages.batches import TokensUsed
from frontend.batch.lines import (
    MAX_ERRORS,
    MAX_LINE_BYTES,
    MAX_LINES,
    LineSplitter,
    Validator,
    answered,
    used_by,
)
from frontend.batch.pace import MAX_IN_FLIGHT, Pace


def split(pieces: list[bytes]) -> list[tuple[int, bytes | None]]:
    splitter = LineSplitter()
    lines = [each for piece in pieces for each in splitter.feed(piece)]
    return lines + list(splitter.finish())


@given(st.lists(st.sampled_from([b"a", b"b{}", b"\n", b"\r\n", b"", b"\n\n", b" "]), max_size=12))
def test_pieces_do_not_matter(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    numbered = [(number, line.strip()) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
    assert split(pieces) == split([whole]) == numbered


def test_what_a_line_took_is_read_from_its_answer() -> None:
    embedded = b'{"object":"list","data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}'
    details = '"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":{"reasoning_tokens":2}'
    said = f'{{"choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":4,{details}}}}}'.encode()
    lines = [answered("id", "a", 200, body) for body in (embedded, said)]
    assert [used_by(line) for line in lines] == [TokensUsed(5), TokensUsed(3, 4, 1, 2)]
    assert used_by(lines[0]) + used_by(lines[1]) == TokensUsed(8, 4, 1, 2)


def test_a_huge_line_is_passed_over_without_being_held() -> None:
    pieces = [b"a\n", *[b"x" * 2**18] * 8, b"y\nb"]
    assert split(pieces) == [(1, b"a"), (2, None), (3, b"b")]
    assert split([b"x" * (MAX_LINE_BYTES + 1)]) == [(1, None)]
    assert split([b"x" * MAX_LINE_BYTES]) == [(1, b"x" * MAX_LINE_BYTES)]


GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (b'{"body":' + b'{"a":' * 100_000, "invalid_json_line"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        (None, "line_too_large"),
        (GOOD | {"custom_id": ""}, "invalid_custom_id"),
        (GOOD | {"custom_id": 5}, "invalid_request"),
        (GOOD | {"method": "GET"}, "invalid_method"),
        (GOOD | {"url": "/v1/chat/completions"}, "invalid_url"),
        (GOOD | {"body": []}, "invalid_body"),
    ],
)
def test_each_error_is_told_at_its_line(line: bytes | dict[str, object] | None, code: str) -> None:
    validator = Validator("/v1/completions")
    validator.check(3, json.dumps(line).encode() if isinstance(line, dict) else line)
    validator.finish()
    assert [(each.code, each.line) for each in validator.errors] == [(code, 3)]


def test_ids_are_unique_and_errors_and_lines_bounded() -> None:
    validator = Validator("/v1/completions")
    for number in range(1, 300):
        validator.check(number, json.dumps(GOOD).encode())
    assert len(validator.errors) == MAX_ERRORS
    assert {each.code for each in validator.errors} == {"duplicate_custom_id"}
    empty = Validator("/v1/completions")
    empty.finish()
    assert [each.code for each in empty.errors] == ["empty_file"]
    full = Validator("/v1/completions")
    full.num_lines = MAX_LINES
    full.check(MAX_LINES + 1, json.dumps(GOOD).encode())
    assert [each.code for each in full.errors] == ["too_many_requests"]


def test_the_pace_grows_while_it_is_used_and_halves_when_somebody_waits() -> None:
    pace = Pace()
    pace.look(is_crowded=False, num_in_flight=0)
    assert pace.limit == 4
    for _ in range(100):
        pace.look(is_crowded=False, num_in_flight=pace.limit)
    assert pace.limit == MAX_IN_FLIGHT
    pace.look(is_crowded=True, num_in_flight=pace.limit)
    assert pace.limit == MAX_IN_FLIGHT // 2
    for _ in range(10):
        pace.slow_down()
    assert pace.limit == 1
