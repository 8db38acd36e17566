"""Subjects, header blocks and delivery positions, with what a hostile peer may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import wire
from bus.errors import Malformed


@pytest.mark.parametrize("subject", ["a", "a.b.c", "$JS.API.INFO", "_INBOX.x", "busway.out.v1.f-1.w_2", "ä.b"])
def test_ordinary_subjects_pass(subject):
    assert wire.check_subject(subject) == subject
    assert wire.check_filter(subject) == subject


@pytest.mark.parametrize("pattern", [">", "*", "a.>", "*.b.*", "a.*.c.>"])
def test_wildcards_are_for_filters_only(pattern):
    assert wire.check_filter(pattern) == pattern
    with pytest.raises(Malformed):
        wire.check_subject(pattern)


@given(st.text(max_size=40))
def test_no_subject_that_passes_breaks_the_protocol_line(subject):
    try:
        wire.check_subject(subject)
    except Malformed:
        return
    line = wire.pub(subject, "", b"")
    assert line.count(b"\r\n") == 1
    assert line.decode().split(" ") == ["PUB", subject, "", "0\r\n"]


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=4))
def test_headers_that_pass_come_back_or_are_trimmed(headers):
    try:
        block = wire.header_block(headers)
    except Malformed:
        return
    parsed = wire.parse_headers(block)
    assert {key: parsed[key].strip() for key in headers} == {
        key: _as_bytes_keep(value) for key, value in headers.items()
    }


def _as_bytes_keep(value):
    return value.encode("utf-8", "replace").strip().decode("utf-8", "replace").strip()


@given(st.binary(max_size=80))
def test_any_bytes_as_headers_parse_or_are_malformed(block):
    for candidate in (
        block,
        b"NATS/1.0" + block,
        b"NATS/1.0" + block + b"\r\n\r\n",
        b"NATS/1.0\r\n" + block + b"\r\n\r\n",
    ):
        try:
            parsed = wire.parse_headers(candidate)
        except Malformed:
            continue
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in parsed.items())


def test_an_inline_status_is_found_beside_headers():
    block = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nX:y\r\n\r\n"
    assert wire.parse_headers(block) == {
        "Status": "100",
        "Description": "Idle Heartbeat",
        "Nats-Last-Consumer": "1016",
        "X": "y",
    }
    assert wire.parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"NATS/1.0",
        b"HTTP/1.1\r\n\r\n",
        b"NATS/1.0 5\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\na b: c\r\n\r\n",
    ],
)
def test_broken_blocks_are_malformed(block):
    with pytest.raises(Malformed):
        wire.parse_headers(block)


def test_positions_of_both_generations_are_read():
    assert wire.parse_position("$JS.ACK.S.C.2.40.7.1700000000000000000.3") == (2, 40, 7, 3)
    assert wire.parse_position("$JS.ACK.domain.account.S.C.2.40.7.1700000000000000000.3") == (2, 40, 7, 3)
    assert wire.parse_position("$JS.ACK.domain.account.S.C.2.40.7.1700000000000000000.3.random") == (2, 40, 7, 3)


@given(st.text(max_size=60))
def test_any_reply_is_a_position_or_malformed(reply):
    for candidate in (reply, f"$JS.ACK.{reply}", f"$JS.ACK.S.C.{reply}"):
        try:
            wire.parse_position(candidate)
        except Malformed:
            continue


def test_replies_do_not_push_out_subjects_that_come_again():
    wire.check_subject("busway.load.v1.m.w-1")
    num_remembered = wire.check_subject.cache_info().currsize
    for number in range(100):
        assert wire.check_reply(f"_INBOX.a.{number}") == f"_INBOX.a.{number}"
    assert wire.check_subject.cache_info().currsize == num_remembered
    with pytest.raises(Malformed):
        wire.check_reply("a.*")
