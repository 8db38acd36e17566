"""Traces are read with bounds, prompts follow from ids alone, and the bounds of reuse hold."""

import itertools

import pytest

from bus.errors import BadConfig
from bus.messages.base import unpack_u32
from components.replay.trace import MAX_LINE_BYTES, PromptWriter, TraceRequest, arrivals_of, read_trace

GOOD = b'{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}'


def request(*ids: int, tokens: int | None = None, at_s: float = 0.0) -> TraceRequest:
    return TraceRequest(
        timestamp=at_s * 1000, input_length=tokens or 512 * len(ids), output_length=1, hash_ids=list(ids)
    )


def test_requests_come_in_the_order_of_arrival_and_empty_lines_do_not_count() -> None:
    early = GOOD.replace(b"3000", b"27")
    assert [one.arrival_s for one in read_trace([GOOD, b"", b"  \n", early])] == [0.027, 3.0]


def test_only_so_many_are_read() -> None:
    assert len(read_trace(itertools.repeat(GOOD), limit=3)) == 3


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"timestamp": 0}',
        GOOD.replace(b"600", b"0"),
        GOOD.replace(b"600", b"-1"),
        GOOD.replace(b"600", b"1e99"),
        GOOD.replace(b"600", b"99999999999"),
        GOOD.replace(b"3000", b"NaN"),
        GOOD.replace(b"3000", b"-3"),
        GOOD.replace(b"[0, 7]", b"[0]"),
        GOOD.replace(b"[0, 7]", b"[0, 7, 8]"),
        GOOD.replace(b"[0, 7]", b"[0, -7]"),
        GOOD.replace(b"[0, 7]", b"[0, 99999999999999999999]"),
        GOOD.replace(b"5,", b'"5",'),
        GOOD + b" " * MAX_LINE_BYTES,
    ],
)
def test_a_broken_line_is_named(line: bytes) -> None:
    with pytest.raises(BadConfig, match=r"my\.jsonl:2: "):
        read_trace([GOOD, line], source="my.jsonl")


def test_a_trace_without_requests_is_none() -> None:
    with pytest.raises(BadConfig, match="no request"):
        read_trace([b"\n"])


@pytest.mark.parametrize("vocab_size", [4, 300, 4096, 32_000, 65_536, 151_936])
def test_prompts_stay_inside_the_vocabulary_and_have_their_length(vocab_size: int) -> None:
    tokens = unpack_u32(PromptWriter(vocab_size).write(request(1, 2, 3, tokens=1030)))
    assert len(tokens) == 1030
    assert max(tokens) < vocab_size


def test_prompts_are_equal_exactly_as_far_as_the_ids_are() -> None:
    writer = PromptWriter(32_000)
    one, other = writer.write(request(5, 6, 7)), writer.write(request(5, 6, 8))
    assert one[: 4 * 1024] == other[: 4 * 1024]
    assert one[4 * 1024 : 4 * 1088] != other[4 * 1024 : 4 * 1088]
    assert PromptWriter(32_000).write(request(5, 6, 7)) == one


def test_a_denser_load_comes_so_much_earlier() -> None:
    arrivals = arrivals_of([request(1, at_s=3.0)], PromptWriter(4096), load=2.0)
    assert [(one.at_s, len(one.prompt), one.num_output) for one in arrivals] == [(1.5, 2048, 1)]
