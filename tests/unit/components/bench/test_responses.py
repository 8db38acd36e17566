"""Pure. Responses cut anywhere count the same, and bytes that are no response are named as such."""

import pytest

from components.bench.responses import MAX_HEAD_BYTES, BadResponse, ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
NASTY = b'data: {"choices":[{"delta":{"content":"data: [DONE] \\"content\\":\\"x\\" \\"error\\":{"}}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


def frame(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


STREAM = HEAD + b"".join(map(frame, [ROLE, TOKEN, NASTY, TOKEN + TOKEN, FINISH, USAGE, DONE])) + LAST


def read(pieces: list[bytes]) -> tuple[int, ResponseReader]:
    reader = ResponseReader()
    return sum(reader.feed(piece) for piece in pieces), reader


def assert_is_whole(count: int, reader: ResponseReader) -> None:
    assert (count, reader.completion_tokens, reader.excerpt) == (4, 4, b"")
    assert reader.is_done
    assert reader.is_complete
    assert reader.keeps_alive


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_stream_counts_the_same_in_pieces_of_any_size(size: int) -> None:
    assert_is_whole(*read([STREAM[at : at + size] for at in range(0, len(STREAM), size)]))


def test_a_stream_counts_the_same_cut_at_one_place() -> None:
    for cut in range(1, len(STREAM), 3):
        assert_is_whole(*read([STREAM[:cut], STREAM[cut:]]))


def test_events_count_once_whatever_the_chunks_cut() -> None:
    text = ROLE + TOKEN + NASTY + TOKEN + TOKEN + FINISH + USAGE + DONE
    for size in (1, 5, 33, 100):
        chunks = [frame(text[at : at + size]) for at in range(0, len(text), size)]
        assert_is_whole(*read([HEAD, *chunks, LAST]))


def test_spaces_after_colons_and_crlf_lines_are_understood() -> None:
    token = b'data: {"choices": [{"delta": {"content": "a"}}]}\r\n\r\n'
    role = b'data: {"choices": [{"delta": {"content": ""}}]}\r\n\r\n'
    count, reader = read([HEAD, frame(role), frame(token), frame(token), frame(b"data: [DONE]\r\n\r\n"), LAST])
    assert (count, reader.is_complete) == (2, True)


def test_reasoning_counts_and_content_after_it_too() -> None:
    thought = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    count, _ = read([HEAD, frame(thought), frame(thought), frame(TOKEN), frame(TOKEN)])
    assert count == 4


def test_completions_text_counts() -> None:
    count, _ = read(
        [
            HEAD,
            frame(b'data: {"choices":[{"text":"a"}],"usage":null}\n\n'),
            frame(b'data: {"choices":[{"text":""}]}\n\n'),
        ]
    )
    assert count == 1


def test_the_last_chunk_ends_the_response_after_tokens_read_one_by_one() -> None:
    _, reader = read([HEAD, frame(TOKEN), frame(TOKEN), LAST])
    assert reader.is_done
    assert not reader.is_complete


def test_trailers_and_chunk_extensions_are_skipped() -> None:
    chunk = b"%x;name=value\r\n%b\r\n" % (len(TOKEN), TOKEN)
    count, reader = read([HEAD, chunk, b"0\r\nTrailer: x", b"\r\n\r\n"])
    assert (count, reader.is_done) == (1, True)


def test_an_http_error_keeps_its_status_and_an_excerpt() -> None:
    body = b'{"error":{"message":"no such model"}}'
    _, reader = read([b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body), body[:9], body[9:]])
    assert (reader.status, reader.excerpt, reader.is_done) == (404, body, True)


def test_an_error_event_in_a_stream_is_quoted() -> None:
    _, reader = read([HEAD, frame(TOKEN), frame(b'data: {"error":{"message":"worker died"}}\n\n'), frame(DONE), LAST])
    assert b"worker died" in reader.excerpt


def test_a_100_continue_is_skipped() -> None:
    assert_is_whole(*read([b"HTTP/1.1 100 Continue\r\n\r\n", STREAM]))


def test_connection_close_and_bytes_behind_the_end_forbid_keep_alive() -> None:
    _, reader = read([HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), LAST])
    assert not reader.keeps_alive
    _, reader = read([HEAD, LAST + b"HTTP/1.1 408"])
    assert not reader.keeps_alive


def test_a_body_without_length_ends_with_the_connection() -> None:
    count, reader = read([b"HTTP/1.1 200 OK\r\n\r\n", TOKEN, TOKEN + DONE])
    reader.end()
    assert (count, reader.is_done, reader.is_complete) == (2, True, True)


@pytest.mark.parametrize(
    "sent", [b"", HEAD[:20], HEAD, HEAD + frame(TOKEN)[:9], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"]
)
def test_a_connection_that_closes_early_is_a_bad_response(sent: bytes) -> None:
    _, reader = read([sent])
    with pytest.raises(BadResponse, match="closed in the middle"):
        reader.end()


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2\xb2\xb2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        HEAD + b"zz\r\n",
        HEAD + b"-1\r\nabc",
        HEAD + b"fffffff\r\n",
        HEAD + b"2\r\nabcd\r\n",
        b"x" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_bytes_that_are_no_response_are_refused(sent: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(sent)
