"""Pure. What an offer must be before its blocks are read."""

from collections.abc import Sequence

import xxhash

from bus.errors import Malformed, TransferRefused
from bus.messages.base import unpack_u32
from bus.messages.transfer import AgentAddress, BlockOffer
from components.transfer.leases import NUM_SLOTS, SEAL_BYTES

MAX_ENDPOINT_BYTES = 64 * 1024
MIN_LEASE_S, MAX_LEASE_S = 0.05, 3600.0

_READ_S = 2.0
_MIN_RATE = 100e6
"""Bytes per second; a slower link loses to a local prefill."""


def check_offer(offer: BlockOffer, ours: AgentAddress) -> list[int]:
    """Return the numbers of the offered blocks.

    Raises `TransferRefused` when they would mean something else here, `Malformed` when the offer makes no sense.
    """
    source = offer.source
    if source.transport != ours.transport:
        raise TransferRefused(
            f"worker {source.agent} offers its KV blocks over {source.transport}, this one reads over "
            f"{ours.transport}: install busway[nixl] on both, or on none"
        )
    for what, theirs, own in (
        (
            "fingerprint (model, dtype, layout, block size, tensor parallel degree)",
            source.fingerprint,
            ours.fingerprint,
        ),
        ("block_bytes", source.block_bytes, ours.block_bytes),
    ):
        if theirs != own:
            raise TransferRefused(
                f"KV blocks of worker {source.agent} cannot be used here: their {what} is {theirs!r}, ours {own!r}; "
                "start both workers with the same model, dtype and block size"
            )
    blocks = unpack_u32(offer.blocks).tolist()
    last = max(blocks, default=0)
    if last >= source.num_blocks:
        raise Malformed(f"the offer names block {last}, its worker has {source.num_blocks}")
    if not 0 < offer.lease < 2**64 or not 0 <= offer.slot < NUM_SLOTS:
        raise Malformed(f"the offer names no lease that can be: {offer.lease} in slot {offer.slot}")
    if not MIN_LEASE_S <= offer.lease_s <= MAX_LEASE_S:
        raise Malformed(f"the offer's lease lasts {offer.lease_s} s")
    check_endpoint(source)
    return blocks


def check_endpoint(source: AgentAddress) -> None:
    """Raise `Malformed` for an endpoint whose bytes are not those that its agent wrote.

    NIXL hands metadata to UCX, which ends the process (an assertion) when some bytes of it are wrong, and metadata that
    is cut short keeps its agent from being known under that name again: nothing that was damaged on the way may get
    there. Against a sender that forges metadata only the bus's permissions help.
    """
    if len(source.endpoint) > MAX_ENDPOINT_BYTES or digest(source.endpoint) != source.endpoint_digest:
        raise Malformed(f"the endpoint of {source.agent} is damaged: {len(source.endpoint)} bytes, wrong digest")
    ends = source.pool_address + source.num_blocks * source.block_bytes, source.seals_address + NUM_SLOTS * SEAL_BYTES
    if min(source.pool_address, source.seals_address) < 0 or max(ends) > 2**64:
        raise Malformed(f"agent {source.agent} names no address")


def digest(endpoint: bytes) -> int:
    """Return 64 bits that tell one endpoint from another."""
    return xxhash.xxh3_64_intdigest(endpoint)


def check_read(start: int, ours: Sequence[int], num_offered: int, num_blocks: int) -> None:
    """Raise `ValueError` when a caller asks for blocks that were not offered, or to write where no block is."""
    if start < 0 or start + len(ours) > num_offered:
        raise ValueError(f"blocks {start} to {start + len(ours)} of {num_offered} offered ones")
    if ours and (len(set(ours)) != len(ours) or min(ours) < 0 or max(ours) >= num_blocks):
        raise ValueError(f"blocks to fill must be different ones of {num_blocks}")


def allowed_s(num_bytes: int) -> float:
    """Return how long a read of so many bytes may take."""
    return _READ_S + num_bytes / _MIN_RATE
