"""Keys are found by digest, in whatever header; files that are none are refused."""

import time
from pathlib import Path

import pytest

from bus.errors import BadConfig
from bus.keys import PREFIX, decode_key_file, digest_of, new_key
from bus.messages.keys import ApiKey
from frontend.auth.keys import Keys, key_of, read_key_file
from frontend.errors import InvalidKey


def test_a_key_is_found_until_it_is_removed() -> None:
    keys, key = Keys(), new_key()
    keys.set(digest_of(key.encode()), ApiKey(name="a", tenant="acme"))
    assert keys.identify(key.encode()).tenant == "acme"
    keys.set(digest_of(key.encode()), None)
    with pytest.raises(InvalidKey):
        keys.identify(key.encode())


@pytest.mark.parametrize("key", [b"", b"x", b"\xff\x00", b"sk-busway-", b"a" * 30_000])
def test_other_keys_are_refused_without_being_shown(key: bytes) -> None:
    keys = Keys()
    keys.set(digest_of(b"right"), ApiKey(name="a"))
    with pytest.raises(InvalidKey) as caught:
        keys.identify(key)
    assert len(str(caught.value)) < 100
    with pytest.raises(InvalidKey):
        keys.identify(digest_of(b"right").encode())


def test_an_expired_key_is_refused() -> None:
    keys = Keys()
    keys.set(digest_of(b"k"), ApiKey(name="a", expires_at=time.time() - 1))
    with pytest.raises(InvalidKey, match="expired"):
        keys.identify(b"k")


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bearer  k ")], b"k"),
        ([(b"authorization", b"Basic k")], b""),
        ([(b"authorization", b"Bearer")], b""),
        ([(b"x-api-key", b"k")], b"k"),
        ([(b"authorization", b"Basic x"), (b"x-api-key", b"k")], b"k"),
        ([], b""),
    ],
)
def test_keys_are_read_from_both_headers(headers: list[tuple[bytes, bytes]], key: bytes) -> None:
    assert key_of(dict(headers)) == key


def test_new_keys_differ_and_can_be_recognized() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert first.startswith(PREFIX)
    assert len(first) > len(PREFIX) + 40


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {"secret": {"name": "a"}}}',
        b'{"keys": {"' + b"0" * 64 + b'": {}}}',
        b'{"keys": {"' + b"0" * 64 + b'": {"name": "a", "requests_per_s": 0}}}',
        b'{"keys":' + b'{"a":' * 100_000,
        b'{"keys": {"\xff": {}}}',
    ],
)
def test_what_is_no_file_of_keys_is_refused(data: bytes) -> None:
    with pytest.raises(BadConfig):
        decode_key_file(data, Path("keys.json"))


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="busway keys add"):
        read_key_file(tmp_path / "none.json")
