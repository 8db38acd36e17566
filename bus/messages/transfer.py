"""Pure. KV blocks that a worker offers to others: where they lie and for how long; the bytes go beside the bus."""

from bus.messages.base import Fact


class AgentAddress(Fact, frozen=True, kw_only=True, tag="agent_address"):
    """Where the KV blocks of one worker process are read."""

    agent: str
    """Worker and boot: a process that starts again has another name."""
    transport: str
    """`nixl` or `loopback`; a reader with another one cannot read here."""
    fingerprint: str
    """Model, dtype and layout of the blocks: only blocks with the same fingerprint mean the same."""
    block_bytes: int
    num_blocks: int
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    endpoint: bytes
    """For `nixl` the agent's metadata, for `loopback` the path of a socket."""
    endpoint_digest: int
    """xxh3_64 of `endpoint`."""
    pool_address: int = 0
    """Where block 0 begins in the memory of the process."""
    seals_address: int = 0
    """Where the seals begin, one uint64 a slot."""
    host: str = ""
    """The same for processes whose numbers mean the same: boot and process namespace; empty: nobody knows."""
    pid: int = 0
    """The process, on that host."""


class BlockOffer(Fact, frozen=True, kw_only=True, tag="block_offer"):
    """Blocks that stay as they are for as long as the lease lasts."""

    source: AgentAddress
    lease: int
    """64 random bits: what the seal in `slot` says for exactly as long as the lease lasts."""
    slot: int
    blocks: bytes
    """Block numbers in the source, little-endian uint32, in the order of the tokens."""
    lease_s: float
    """How long the lease lasts after the last renewal."""


class Handover(Fact, frozen=True, kw_only=True, tag="handover"):
    """What a worker that only prefills leaves to the one that goes on: the KV blocks of the job's first tokens."""

    worker: str
    """Who prefilled, and is the job's worker until another one accepts it."""
    offer: BlockOffer
    num_blocks: int
    last_hash: int
    """Hash of the last of these blocks: a reader whose block there has another one has no use for them."""
    is_early: bool = False
    """The prompt is still being computed: fetch what there is, and leave the rest to the job that comes behind it."""


class PeerQuery(Fact, frozen=True, kw_only=True, tag="peer_query"):
    """A worker asks another one for blocks that are in its host memory; the answer comes to the reply subject."""

    space: bytes
    """Of all these blocks: a digest of model, layout and cache salt."""
    block_hashes: bytes
    """In the order of their chain, little-endian uint64."""


class PeerAnswer(Fact, frozen=True, kw_only=True, tag="peer_answer"):
    """The first of the blocks that were asked for, as many as there are without a gap."""

    offer: BlockOffer | None = None
    """None: there is none of them, or too many are being read."""
