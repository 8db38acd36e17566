"""Names and frames of stored blocks: pinned by values, and nothing foreign, cut or flipped passes for a block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.key import (
    HEADER_BYTES,
    BlockKey,
    Header,
    Space,
    is_sound,
    object_name,
    parse_object_name,
    read_header,
    seal,
    space_of,
)

SPACE = space_of("tiny/float32/16/1", "tenant")
KEY = BlockKey(SPACE, 0x0123456789ABCDEF)


def sealed(payload: bytes, key: BlockKey = KEY, parent_hash: int = 7) -> memoryview:
    frame = memoryview(bytearray(HEADER_BYTES) + bytearray(payload))
    seal(frame, key, parent_hash)
    return frame


def test_values_are_pinned() -> None:
    """Disks, Redis and object stores hold these very bytes, written by other versions."""
    assert object_name(KEY) == "4b31d8678dc9e79bcff490925df9c581/0123456789abcdef"
    assert bytes(sealed(b"payload")).hex() == (
        "6275737761790d0a01004000000000004b31d8678dc9e79bcff490925df9c581"
        "efcdab896745230107000000000000000700000000000000795f1177073e9c2f"
        "7061796c6f6164"
    )


def test_a_sealed_frame_is_sound_and_says_what_it_is() -> None:
    frame = sealed(b"payload")
    assert is_sound(frame, KEY)
    assert read_header(frame) == Header(KEY, 7, 7)


@given(st.binary(max_size=200), st.data())
def test_any_flipped_bit_is_found(payload: bytes, data: st.DataObject) -> None:
    frame = sealed(payload)
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert not is_sound(frame, KEY)


@given(st.binary(max_size=200), st.data())
def test_a_cut_or_longer_frame_is_not_sound(payload: bytes, data: st.DataObject) -> None:
    frame = bytes(sealed(payload))
    length = data.draw(st.integers(0, len(frame) - 1))
    assert not is_sound(memoryview(frame[:length]), KEY)
    assert not is_sound(memoryview(frame + b"\0"), KEY)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_no_frame(data: bytes) -> None:
    assert not is_sound(memoryview(data), KEY)


@pytest.mark.parametrize("other", [BlockKey(SPACE, 1), BlockKey(space_of("tiny/float32/16/1"), KEY.block_hash)])
def test_a_block_of_another_name_or_space_is_not_sound(other: BlockKey) -> None:
    assert not is_sound(sealed(b"payload", other), KEY)


def test_fingerprint_and_salt_separate() -> None:
    spaces = {space_of("a"), space_of("b"), space_of("a", "b"), space_of("ab"), space_of("", "ab"), space_of("", "a")}
    assert len(spaces) == 6


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
def test_object_names_are_read_back(space: bytes, block_hash: int) -> None:
    key = BlockKey(Space(space), block_hash)
    assert parse_object_name(object_name(key)) == key


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-fA-F_ ]{28,34}/[0-9a-fA-F_ ]{14,18}", fullmatch=True))
def test_other_names_are_no_keys(name: str) -> None:
    key = parse_object_name(name)
    assert key is None or object_name(key) == name
