"""The codec turns whatever hostile bytes do into `Malformed`, and nothing else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import codec, encode
from bus.errors import Malformed
from bus.messages.base import pack_u32, pack_u64, unpack_u32, unpack_u64
from bus.messages.inference import Cancel, GenerateJob, StepBatch, Stopping

JOB = GenerateJob(
    request_id="r", frontend="f", ticket=7, model="m", prompt=pack_u32([1, 2, 3]), stopping=Stopping(max_tokens=4)
)

HOSTILE = [
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xffabc",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x81\xa4type\xa3\xff\xfe\xfd",
    b"\x00" * 64,
    b"not a message",
]


@pytest.mark.parametrize("data", HOSTILE)
@pytest.mark.parametrize("message_type", [GenerateJob, StepBatch, Cancel])
def test_hostile_msgpack_is_malformed(data: bytes, message_type: type) -> None:
    with pytest.raises(Malformed):
        codec(message_type).decode(data)


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b'{"type":"cancel"}', b'{"a":\xff}', b"[1,2,3]", b'"x"'])
def test_hostile_json_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        codec(Cancel).decode_json(data)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    for message_type in (GenerateJob, StepBatch):
        try:
            codec(message_type).decode(data)
        except Malformed:
            continue


def test_numbers_out_of_bounds_are_malformed() -> None:
    fields = msgspec.to_builtins(JOB) | {"ticket": 2**32}
    with pytest.raises(Malformed, match="ticket"):
        codec(GenerateJob).decode(encode(fields))


def test_a_job_may_come_as_msgpack_or_json() -> None:
    assert codec(GenerateJob).decode_any(encode(JOB)) == JOB
    assert codec(GenerateJob).decode_any(b"  " + msgspec.json.encode(JOB)) == JOB


def test_fields_of_a_newer_version_are_ignored() -> None:
    fields = msgspec.to_builtins(JOB) | {"prompt": JOB.prompt, "from_the_future": [1, {"x": 2}]}
    assert codec(GenerateJob).decode(encode(fields)) == JOB
    assert codec(StepBatch).decode(encode(["w", 0, b"", b"", b"", [], [], [], [], [], [], "later", 2])) == StepBatch(
        "w", 0
    )


@given(st.lists(st.integers(0, 2**32 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_columns_round_trip(small: list[int], large: list[int]) -> None:
    assert unpack_u32(pack_u32(small)).tolist() == small
    assert unpack_u64(pack_u64(large)).tolist() == large


def test_a_broken_column_is_malformed() -> None:
    with pytest.raises(Malformed):
        unpack_u32(b"abc")
    with pytest.raises(Malformed):
        unpack_u64(b"abcd")
