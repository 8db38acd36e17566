"""The Redis protocol against servers that lie: every answer ends as a value, a miss or an error, never out of step."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import BadConfig
from offload.resp import Address, Connection, parse_url
from offload.store import TierUnavailable


@contextmanager
def serving(answer: bytes, tmp_path: str) -> Iterator[Connection]:
    """Connect to a server that says one thing, whatever it is asked, and hangs up."""
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(Address(path=path), 1.0)
        try:
            yield connection
        finally:
            connection.close()
            thread.join()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("r"))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"*2\r\n$4\r\nabcd\r\n$4\r\nefgh\r\n", [True, True]),
        (b"*2\r\n$-1\r\n$4\r\nefgh\r\n", [False, True]),
        (b"*2\r\n$4\r\nabcd\r\n$-1\r\n", [True, False]),
        (b"*2\r\n$0\r\n\r\n$4\r\nefgh\r\n", [False, True]),
        (b"*2\r\n$5\r\nabcde\r\n$4\r\nefgh\r\n", [False, True]),
        (b"*2\r\n$40\r\n" + b"x" * 40 + b"\r\n$4\r\nefgh\r\n", [False, True]),
        (b"*2\r\n:7\r\n$4\r\nefgh\r\n", [False, True]),
    ],
)
def test_values_and_misses_in_any_order(path: str, answer: bytes, found: list[bool]) -> None:
    views = [memoryview(bytearray(4)), memoryview(bytearray(4))]
    with serving(answer, path) as connection:
        assert connection.get_all([b"a", b"b"], views) == found
    assert bytes(views[1]) == (b"efgh" if found[1] else bytes(4))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["value", "missing", "shorter", "longer"]), min_size=1, max_size=7), st.integers(1, 5))
def test_any_mixture_is_read_to_its_end_and_not_beyond(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], digits: int
) -> None:
    size = 10 ** (digits - 1)
    views = [memoryview(bytearray(size)) for _ in kinds]
    sizes = {"value": size, "shorter": size - 1, "longer": size + 1}
    answer = b"*%d\r\n" % len(kinds)
    for kind in kinds:
        answer += b"$-1\r\n" if kind == "missing" else b"$%d\r\n" % sizes[kind] + b"v" * sizes[kind] + b"\r\n"
    with serving(answer, str(tmp_path_factory.mktemp("r"))) as connection:
        assert connection.get_all([b"k"] * len(kinds), views) == [kind == "value" for kind in kinds]
        assert not connection._pending, "not a byte too many"
    assert all(set(view) == {ord("v")} for view, kind in zip(views, kinds, strict=True) if kind == "value")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"*1\r\n$4\r\nabcd\r\n",
        b"*2\r\n$4\r\nabcd\r\n",
        b"*2\r\n$4\r\nab",
        b"-ERR no\r\n",
        b"*2\r\n$99999999999\r\n",
        b"*2\r\n$-7\r\nxxxxxxxx",
        b"*2\r\n" + b"*1\r\n" * 50,
        b"*2\r\n$x\r\n$4\r\nabcd\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_whatever_is_no_answer_raises(path: str, answer: bytes) -> None:
    views = [memoryview(bytearray(4)), memoryview(bytearray(4))]
    with serving(answer, path) as connection, pytest.raises(TierUnavailable):
        connection.get_all([b"a", b"b"], views)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_end_in_time(tmp_path_factory: pytest.TempPathFactory, answer: bytes) -> None:
    directory = str(tmp_path_factory.mktemp("r"))
    with serving(b"*2\r\n" + answer, directory) as connection:
        try:
            assert len(connection.get_all([b"a", b"b"], [memoryview(bytearray(4))] * 2)) == 2
        except TierUnavailable:
            pass


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address(host="h")),
        ("redis://u:p%40@h:7/3", Address(host="h", port=7, user="u", password="p@", db=3)),
        ("rediss://h", Address(host="h", is_tls=True)),
        ("unix:///run/r.sock?db=2", Address(path="/run/r.sock", db=2)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize("url", ["", "h:6379", "http://h", "redis://u:secret@h:x/0", "redis://:secret@h/a", "unix://"])
def test_wrong_addresses_are_told_without_their_secrets(url: str) -> None:
    with pytest.raises(BadConfig) as raised:
        parse_url(url)
    assert "secret" not in str(raised.value)
