"""What comes of a response whose bytes are cut anywhere, or are no response."""

import pytest

from components.chaos.ask import _Reader
from components.chaos.history import Outcome, Question, judge

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*events: bytes) -> bytes:
    bodies = [b"data: " + event + b"\n\n" for event in events]
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


WHOLE = chunked(
    b'{"choices":[{"text":"a"}]}',
    b'{"choices":[{"text":"b","finish_reason":"length"}]}',
    b'{"choices":[],"usage":{"completion_tokens":2}}',
    b"[DONE]",
)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_response_is_read_however_it_is_cut(size: int) -> None:
    reader = _Reader(Question("q", 2, "ab"), 0.0)
    for place in range(0, len(WHOLE), size):
        assert not reader.is_over
        reader.feed(WHOLE[place : place + size])
    assert reader.is_over
    assert judge(reader.answer()) is Outcome.OK


@pytest.mark.parametrize(
    "data", [b"\xff\x00garbage\r\n\r\n", chunked(b"no json"), chunked(b'{"error":{"message":"died"}}', b"[DONE]"), HEAD]
)
def test_what_is_no_answer_is_none(data: bytes) -> None:
    reader = _Reader(Question("q", 2), 0.0)
    reader.feed(data)
    assert judge(reader.answer()) is Outcome.LOST
