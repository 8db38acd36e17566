"""Pure. What workers tell about the KV blocks that they hold."""

from typing import Literal

import msgspec

from bus.messages.base import Hot

Tier = Literal["device", "host", "disk", "remote"]


class BlocksStored(Hot, frozen=True, tag="stored"):
    """These blocks, each the child of the one before it, are now in `tier`."""

    parent_hash: int
    """Hash of the block before the first one; 0 at the start of a prompt."""
    block_hashes: bytes
    """Little-endian uint64."""
    tier: Tier = "device"


class BlocksRemoved(Hot, frozen=True, tag="removed"):
    """These blocks left `tier`."""

    block_hashes: bytes
    tier: Tier = "device"


class BlocksCleared(Hot, frozen=True, tag="cleared"):
    """`tier` holds no block any more."""

    tier: Tier = "device"


KvEvent = BlocksStored | BlocksRemoved | BlocksCleared


class KvBatch(Hot, frozen=True):
    """Events of one worker in the order in which they happened, numbered without gaps."""

    worker: str
    epoch: int
    """Start of the worker's process, unix nanoseconds: numbering starts again with each."""
    first_seq: int
    """Number of the first event in this batch, from 0."""
    events: list[msgspec.Raw]
    """Encoded `KvEvent`s; readers count and skip tags that they do not know."""
