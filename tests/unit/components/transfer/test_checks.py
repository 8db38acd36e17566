"""Offers of peers: what is refused, and that the error says why."""

import msgspec
import pytest

from bus.codec import codec, encode
from bus.errors import BuswayError, Malformed, TransferRefused
from bus.messages.base import pack_u32
from bus.messages.transfer import AgentAddress, BlockOffer
from components.transfer.checks import MAX_ENDPOINT_BYTES, allowed_s, check_offer, check_read, digest
from components.transfer.leases import NUM_SLOTS
from components.transfer.wire import LeaseNote

OURS = AgentAddress(
    agent="w-2.b",
    transport="nixl",
    fingerprint="qwen3/bf16/16/tp1",
    block_bytes=4096,
    num_blocks=100,
    endpoint=b"ours",
    endpoint_digest=digest(b"ours"),
)
SOURCE = msgspec.structs.replace(OURS, agent="w-1.a", num_blocks=50, endpoint=b"md", endpoint_digest=digest(b"md"))
OFFER = BlockOffer(source=SOURCE, lease=5, slot=0, blocks=pack_u32([3, 49, 0]), lease_s=10.0)


def test_a_good_offer_gives_its_blocks() -> None:
    assert check_offer(codec(BlockOffer).decode(encode(OFFER)), OURS) == [3, 49, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "qwen3/fp16/16/tp1"}, "qwen3/fp16/16/tp1"),
        ({"fingerprint": "qwen3/bf16/16/tp2"}, "tensor parallel degree"),
        ({"block_bytes": 8192}, "8192"),
        ({"transport": "loopback"}, r"busway\[nixl\]"),
    ],
)
def test_blocks_that_mean_something_else_are_refused(changes: dict[str, object], said: str) -> None:
    offer = msgspec.structs.replace(OFFER, source=msgspec.structs.replace(SOURCE, **changes))
    with pytest.raises(TransferRefused, match=said):
        check_offer(offer, OURS)


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": pack_u32([50])},
        {"blocks": b"\1\2\3"},
        {"lease": 0},
        {"lease": 2**64},
        {"slot": NUM_SLOTS},
        {"slot": -1},
        {"lease_s": 0.0},
        {"lease_s": float("nan")},
        {"lease_s": 1e9},
    ],
)
def test_an_offer_that_makes_no_sense_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        check_offer(msgspec.structs.replace(OFFER, **changes), OURS)


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": b"mD"},
        {"endpoint": b""},
        {"endpoint_digest": 0},
        {"endpoint": b"x" * (MAX_ENDPOINT_BYTES + 1), "endpoint_digest": digest(b"x" * (MAX_ENDPOINT_BYTES + 1))},
        {"pool_address": -1},
        {"pool_address": 2**64 - 4096},
        {"seals_address": 2**64 - 64},
        {"num_blocks": 0},
    ],
)
def test_an_address_that_was_damaged_is_malformed(changes: dict[str, object]) -> None:
    offer = msgspec.structs.replace(OFFER, source=msgspec.structs.replace(SOURCE, **changes))
    with pytest.raises(Malformed):
        check_offer(offer, OURS)


def test_every_flipped_byte_of_an_offer_is_an_error_of_ours_or_changes_no_endpoint() -> None:
    data = encode(OFFER)
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            broken = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
            try:
                offer = codec(BlockOffer).decode(broken)
                check_offer(offer, OURS)
            except BuswayError:
                continue
            assert offer.source.endpoint == SOURCE.endpoint, "NIXL would be given damaged bytes"


@pytest.mark.parametrize(
    ("start", "ours"), [(-1, [0]), (0, [0, 1, 2, 3]), (3, [0]), (0, [5, 5]), (0, [100]), (0, [-1])]
)
def test_a_caller_reads_what_was_offered_into_blocks_that_exist(start: int, ours: list[int]) -> None:
    with pytest.raises(ValueError, match="blocks"):
        check_read(start, ours, num_offered=3, num_blocks=100)


def test_bytes_get_time_to_arrive() -> None:
    assert allowed_s(0) == pytest.approx(2.0)
    assert allowed_s(1_000_000_000) == pytest.approx(12.0)


def test_a_note_of_another_release_is_understood() -> None:
    note = bytes.fromhex("93aa6c656173655f6e6f746509a772656c65617365")
    assert encode(LeaseNote(9, "release")) == note
    assert codec(LeaseNote).decode(note) == LeaseNote(9, "release")
