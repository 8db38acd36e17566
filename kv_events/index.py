"""Pure. Which worker holds how much of a prompt's beginning, in which tier."""

from array import array
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple, get_args

from bus.messages.base import unpack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, Tier
from kv_events.runs import Holding, RunIndex
from kv_events.shared import SharedBlocks, Span, merge_spans

TIERS: tuple[Tier, ...] = get_args(Tier)
MAX_BLOCKS = 10_000_000
MAX_SHARED_BLOCKS = 2_000_000
"""Of each shared tier."""
MAX_SHARED_TIERS = 16
"""When one more is told of, the one that was first told of is forgotten."""


PEERS = "peers"
"""Owner of the tier that a worker's peers are to it."""


class Overlap(NamedTuple):
    """Length in blocks of the prefix that a worker holds, counting ever slower tiers: each includes those before it."""

    device: int
    host: int
    disk: int
    remote: int


class PrefixIndex:
    """The blocks of all workers of a model, as their events tell.

    It is exact with regard to the events it was given: a worker's prefix ends where the first block is missing.
    It holds at most `max_blocks` (counted once per worker and tier); when full, further blocks are left out until
    others go, and the workers concerned are `is_truncated`. What is in tiers that workers share is nobody's: it is
    known beside that, and stays when workers go.
    """

    def __init__(self, *, max_blocks: int = MAX_BLOCKS, max_shared_blocks: int = MAX_SHARED_BLOCKS) -> None:
        self.max_blocks = max_blocks
        self._max_shared_blocks = max_shared_blocks
        self._shared: dict[str, SharedBlocks] = {}
        self._num_blocks = 0
        self._tiers: dict[Tier, RunIndex] = {tier: RunIndex() for tier in TIERS}
        self._device = self._tiers["device"]
        self._lower = [self._tiers[tier] for tier in TIERS[1:]]
        self._workers: dict[str, None] = {}
        self._truncated: set[str] = set()

    def __len__(self) -> int:
        """Return the number of blocks, each counted once per worker and tier."""
        return self._num_blocks

    def workers(self) -> list[str]:
        """Return all workers that told something since they were last removed."""
        return list(self._workers)

    def apply(self, worker: str, events: Iterable[KvEvent]) -> None:
        """Apply one worker's events in their order.

        Storing what is held and removing what is not change nothing. Raises `Malformed` at a broken column; the
        events before it are applied.
        """
        self._workers[worker] = None
        for event in events:
            tier = self._tiers[event.tier]
            match event:
                case BlocksStored():
                    self._store(worker, event.tier, event.parent_hash, unpack_u64(event.block_hashes))
                case BlocksRemoved():
                    self._num_blocks -= tier.remove(worker, unpack_u64(event.block_hashes))
                case BlocksCleared():
                    self._num_blocks -= tier.clear(worker)

    def apply_shared(self, owner: str, events: Iterable[KvEvent]) -> None:
        """Apply what was told of a tier that workers share. Raises as `apply`."""
        blocks = self._shared.get(owner)
        if blocks is None:
            if len(self._shared) >= MAX_SHARED_TIERS:
                del self._shared[next(iter(self._shared))]
            blocks = self._shared[owner] = SharedBlocks(self._max_shared_blocks)
        for event in events:
            blocks.apply(event)

    def match_shared(self, hashes: Sequence[int]) -> dict[str, list[Span]]:
        """Return which parts of this chain each shared tier has; those that have none are absent.

        `PEERS` stands for the host memory of all workers together.
        """
        found = {owner: blocks.spans(hashes) for owner, blocks in self._shared.items()}
        if self._tiers["host"].runs:
            spans = self._tiers["host"].spans(hashes)
            found[PEERS] = merge_spans([(at, at + min(length, max(held.values()))) for at, length, held in spans])
        return {owner: spans for owner, spans in found.items() if spans}

    def forget_shared(self) -> None:
        """Know of no shared tier any more."""
        self._shared.clear()

    def replace(self, worker: str, events: Iterable[KvEvent]) -> None:
        """Let a worker hold what these events, those of a snapshot, lead to from nothing. Raises as `apply`."""
        self.remove_worker(worker)
        self.apply(worker, events)

    def remove_worker(self, worker: str) -> None:
        """Forget a worker and its blocks."""
        for tier in self._tiers.values():
            self._num_blocks -= tier.clear(worker)
        self._workers.pop(worker, None)
        self._truncated.discard(worker)

    def num_blocks(self, worker: str, tier: Tier = "device") -> int:
        """Return how many blocks a worker holds in a tier."""
        return self._holding(worker, tier).num_blocks

    def digest(self, worker: str) -> tuple[int, int]:
        """Return number and xor of the hashes that a worker holds in its device tier."""
        holding = self._holding(worker, "device")
        return holding.num_blocks, holding.xor

    def is_truncated(self, worker: str) -> bool:
        """Whether blocks of this worker were left out since it was last removed or replaced: its digest is too low."""
        return worker in self._truncated

    @property
    def has_tiers(self) -> bool:
        """Whether any worker holds blocks below its device."""
        return any(tier.runs for tier in self._lower)

    def match_device(self, hashes: Sequence[int]) -> dict[str, int]:
        """Return how long a prefix of this chain of block hashes each worker holds in its device tier alone."""
        return self._device.match(hashes)

    def match(self, hashes: Sequence[int]) -> dict[str, Overlap]:
        """Return how long a prefix of this chain each worker holds; who holds none is absent.

        Each tier counts for those below it, and a prefix may pass between them.
        """
        lengths: list[dict[str, int]] = []
        spans: list[tuple[int, int, dict[str, int]]] = []
        for tier in self._tiers.values():
            if tier.runs or not lengths:
                spans = sorted([*spans, *tier.spans(hashes)], key=itemgetter(0))
                lengths.append(_reach(spans))
            else:
                lengths.append(lengths[-1])
        device, host, disk, remote = lengths
        return {
            worker: Overlap(device.get(worker, 0), host.get(worker, 0), disk.get(worker, 0), length)
            for worker, length in remote.items()
        }

    def _store(self, worker: str, tier: Tier, parent: int, blocks: "array[int]") -> None:
        room = self.max_blocks - self._num_blocks
        if len(blocks) > room:
            self._truncated.add(worker)
            blocks = blocks[:room]
        self._num_blocks += self._tiers[tier].store(worker, parent, blocks)

    def _holding(self, worker: str, tier: Tier) -> Holding:
        return self._tiers[tier].holdings.get(worker) or Holding()


def _reach(spans: Iterable[tuple[int, int, dict[str, int]]]) -> dict[str, int]:
    """Return how far each worker comes from the start without a gap, given spans in the order of their starts."""
    reach: dict[str, int] = {}
    for start, length, held in spans:
        for worker, blocks in held.items():
            if reach.get(worker, 0) >= start:
                reach[worker] = max(reach.get(worker, 0), start + min(length, blocks))
    return reach
