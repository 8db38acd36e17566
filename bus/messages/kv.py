"""Pure. What workers tell about the KV blocks that they hold."""

from typing import Literal

import msgspec

from bus.messages.base import Fact, Hot

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
    """Events of one worker in the order in which they happened, numbered without gaps.

    Or, with `num_parts`, a part of a snapshot: the events that lead from nothing to what the worker held just before
    event `first_seq`. They bear no numbers, and all parts are needed.
    """

    worker: str
    epoch: int
    """Start of the worker's process, unix nanoseconds: numbering starts again with each."""
    first_seq: int
    """Number of the first event in this batch, from 0."""
    events: list[msgspec.Raw]
    """Encoded `KvEvent`s; readers count and skip tags that they do not know."""
    part: int = 0
    """Position of this part in its snapshot, from 0."""
    num_parts: int = 0
    """0: no snapshot."""


class TierBatch(Hot, frozen=True):
    """What came into a tier that the workers of a model share (Redis, an object store), or left it.

    These blocks are the fleet's: any worker that is attached to the tier can load them, and they outlive the one that
    tells. The events bear no numbers and the tier `remote`: what is lost costs cache misses, no more.
    """

    owner: str
    """Name of the tier; the same for all workers that understand each other's bytes."""
    worker: str
    """Who tells: it stored these blocks, or found them there, or did not."""
    events: list[msgspec.Raw]
    """Encoded `KvEvent`s."""
    space: bytes = b""
    """Under which names the worker stored these blocks: a digest of model, layout and cache salt."""
    num_bytes: int = 0
    """That it stored with them: what quotas are counted by."""
    at: float = 0.0
    """When, in unix seconds; with the worker's name it tells messages with bytes apart."""


class KvQuery(Fact, frozen=True, kw_only=True, tag="kv_query"):
    """What a reader asks a worker: the events since `since`, or a snapshot when there is none to go on from.

    The answer comes to the reply subject as `KvBatch`es: all events from `since` on if the worker still has them, else
    (also for another epoch) a snapshot.
    """

    epoch: int = 0
    since: int = 0
    """Number of the first event that is missing; 0 with an epoch of 0 asks for a snapshot."""
