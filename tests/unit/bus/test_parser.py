"""What a server sends, whole, in pieces, and broken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Malformed
from bus.parser import MAX_LINE_BYTES, MAX_MESSAGE_BYTES, Parser

STREAM = (
    b'INFO {"a":1}\r\n'
    b"MSG a.b 1 5\r\nhello\r\n"
    b"PING\r\n"
    b"MSG a.b 1 reply.to 0\r\n\r\n"
    b"HMSG h 22 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n"
    b"HMSG h 22 r 12 12\r\nNATS/1.0\r\n\r\n\r\n"
    b"+OK\r\n"
    b"MSG a\x0bb\xff 3 4\r\n\r\n\r\n\r\n"
    b"-ERR 'no'\r\n"
    b"PONG\r\n"
)
EXPECTED = [
    b'INFO {"a":1}',
    (1, b"a.b", b"", b"hello", b""),
    b"PING",
    (1, b"a.b", b"reply.to", b"", b""),
    (22, b"h", b"", b"xyz", b"NATS/1.0\r\n\r\n"),
    (22, b"h", b"r", b"", b"NATS/1.0\r\n\r\n"),
    b"+OK",
    (3, b"a\x0bb\xff", b"", b"\r\n\r\n", b""),
    b"-ERR 'no'",
    b"PONG",
]


def parse(*pieces):
    seen = []
    parser = Parser(lambda *message: seen.append(message), seen.append)
    for piece in pieces:
        parser.feed(piece)
    return seen


def test_everything_that_a_server_sends_is_recognised():
    assert parse(STREAM) == EXPECTED


def test_pieces_of_any_size_make_no_difference():
    for size in range(1, len(STREAM)):
        assert parse(*(STREAM[start : start + size] for start in range(0, len(STREAM), size))) == EXPECTED


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 64))
def test_payloads_come_back_from_any_pieces(payloads, size):
    stream = b"".join(b"MSG s 7 %d\r\n%b\r\n" % (len(payload), payload) for payload in payloads)
    seen = parse(*(stream[start : start + size] for start in range(0, len(stream), size)))
    assert [message[3] for message in seen] == payloads


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_malformed(data):
    for candidate in (data, b"MSG " + data, b"HMSG " + data, b"MSG a 1 2\r\n" + data):
        try:
            parse(candidate)
        except Malformed:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"MSG a 1\r\n",
        b"MSG a b 1\r\n",
        b"MSG a 1 r 2 3\r\n",
        b"MSG a 1 -1\r\n",
        b"MSG a 1 %d\r\n" % (MAX_MESSAGE_BYTES + 1),
        b"MSG a 1 " + b"9" * 5000 + b"\r\n",
        b"MSG a 1 1\r\nxyz",
        b"HMSG a 1 5 4\r\n",
        b"HMSG a 1 -1 4\r\n",
        b"HMSG a 1 4\r\n",
        b"x" * (MAX_LINE_BYTES + 1),
    ],
)
def test_what_is_no_protocol_is_malformed(data):
    with pytest.raises(Malformed):
        parse(data)


def test_a_large_payload_in_small_pieces_costs_linear_time():
    payload = bytes(4 * 2**20)
    stream = b"MSG s 7 %d\r\n%b\r\n" % (len(payload), payload)
    seen = parse(*(stream[start : start + 16384] for start in range(0, len(stream), 16384)))
    assert seen == [(7, b"s", b"", payload, b"")]
