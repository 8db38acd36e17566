"""Pure. A worker's own account of its blocks: numbers events, keeps the recent ones, and knows what is held now."""

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from bus.codec import encode
from bus.messages.base import pack_u64, unpack_u64
from bus.messages.kv import BlocksCleared, BlocksStored, KvBatch, KvEvent, KvQuery, Tier

MAX_BATCH_EVENTS = 512
"""Events of one message; a burst (an evicted long prompt) is cut into several."""
MAX_PART_BLOCKS = 4096
"""Blocks in one part of a snapshot: 32 KiB of hashes, and some milliseconds for who writes and who reads it."""
MAX_RECENT_BATCHES = 8192
MAX_RECENT_BYTES = 8 * 2**20
"""Of batches kept for readers that missed some; older ones are replaced by a snapshot."""
MIN_SNAPSHOT_BYTES = 64 * 2**10
"""Missed events that are not replaced by a snapshot, small as that may be."""
MIN_CHECKPOINT_BLOCKS = 4096


_Block = tuple[int, int]
"""Hash and parent hash."""


class _Recent(msgspec.Struct, frozen=True, gc=False):
    first_seq: int
    end_seq: int
    payload: bytes


class KvLog:
    """Everything that readers of the worker's blocks may be told.

    Memory is one dict entry for each block held, and the recent batches.
    """

    def __init__(self, worker: str, epoch: int) -> None:
        """`epoch` is the start of the worker's process, unix nanoseconds."""
        self.worker = worker
        self.epoch = epoch
        self.next_seq = 0
        self.xor = 0
        """Of the hashes held in the device tier."""
        self._parents: dict[Tier, dict[int, int]] = {"device": {}}
        self._recent: deque[_Recent] = deque()
        self._recent_bytes = 0
        self._blocks_since_checkpoint = 0

    @property
    def num_blocks(self) -> int:
        """Blocks held in the device tier."""
        return len(self._parents["device"])

    def append(self, events: Sequence[KvEvent]) -> list[bytes]:
        """Take what happened into account and return the batches that tell of it."""
        payloads = []
        for start in range(0, len(events), MAX_BATCH_EVENTS):
            chunk = events[start : start + MAX_BATCH_EVENTS]
            for event in chunk:
                self._apply(event)
            first_seq = self.next_seq
            self.next_seq += len(chunk)
            payload = encode(
                KvBatch(self.worker, self.epoch, first_seq, [msgspec.Raw(encode(event)) for event in chunk])
            )
            self._remember(_Recent(first_seq, self.next_seq, payload))
            payloads.append(payload)
        return payloads

    def answer(self, query: KvQuery) -> Iterator[bytes]:
        """Return the batches that bring a reader up to the present: those since `query.since`, or a snapshot.

        A snapshot it is when the events are not all there any more, or more than all that is held. What is returned is
        fixed at the call; a snapshot is encoded as it is iterated.
        """
        oldest = self._recent[0].first_seq if self._recent else self.next_seq
        if query.epoch != self.epoch or not oldest <= query.since <= self.next_seq:
            return self.snapshot()
        missed = [recent.payload for recent in self._recent if recent.end_seq > query.since]
        num_bytes = sum([len(payload) for payload in missed])
        return self.snapshot() if num_bytes > MIN_SNAPSHOT_BYTES + 8 * self._num_held() else iter(missed)

    def snapshot(self) -> Iterator[bytes]:
        """Return the parts of a snapshot of the present, at least one; see `answer`."""
        held = [(tier, list(parents.items())) for tier, parents in self._parents.items() if parents]
        return _encode_parts(self.worker, self.epoch, self.next_seq, held)

    def is_checkpoint_due(self) -> bool:
        """Whether more has changed since the last `checkpoint` than half of what a snapshot holds."""
        return self._blocks_since_checkpoint > max(MIN_CHECKPOINT_BLOCKS, self._num_held() // 2)

    def checkpoint(self) -> Iterator[bytes]:
        """Return a snapshot that can stand for all batches before it."""
        self._blocks_since_checkpoint = 0
        return self.snapshot()

    def _num_held(self) -> int:
        return sum([len(parents) for parents in self._parents.values()])

    def _apply(self, event: KvEvent) -> None:
        parents = self._parents.setdefault(event.tier, {})
        xor = 0
        if isinstance(event, BlocksCleared):
            for block in parents:
                xor ^= block
            self._blocks_since_checkpoint += len(parents)
            parents.clear()
        else:
            hashes = unpack_u64(event.block_hashes)
            self._blocks_since_checkpoint += len(hashes)
            if isinstance(event, BlocksStored):
                parent = event.parent_hash
                for block in hashes:
                    if block not in parents:
                        parents[block] = parent
                        xor ^= block
                    parent = block
            else:
                for block in hashes:
                    if parents.pop(block, None) is not None:
                        xor ^= block
        if event.tier == "device":
            self.xor ^= xor

    def _remember(self, recent: _Recent) -> None:
        self._recent.append(recent)
        self._recent_bytes += len(recent.payload)
        while len(self._recent) > MAX_RECENT_BATCHES or self._recent_bytes > MAX_RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft().payload)


def _encode_parts(worker: str, epoch: int, first_seq: int, held: list[tuple[Tier, list[_Block]]]) -> Iterator[bytes]:
    """Cut what is held into parts, each small enough for one message and for one turn of the event loop."""
    parts: list[tuple[Tier, list[_Block]]] = [
        (tier, blocks[start : start + MAX_PART_BLOCKS])
        for tier, blocks in held
        for start in range(0, len(blocks), MAX_PART_BLOCKS)
    ]
    if not parts:
        parts.append(("device", []))
    for part, (tier, blocks) in enumerate(parts):
        events = [msgspec.Raw(encode(event)) for event in _chains(tier, blocks)]
        yield encode(KvBatch(worker, epoch, first_seq, events, part, len(parts)))


def _chains(tier: Tier, blocks: list[_Block]) -> Iterator[BlocksStored]:
    """Join blocks to chains as long as they go, parents first: sequences that grew side by side lie mingled."""
    left = dict(blocks)
    children = {parent: block for block, parent in blocks}
    for block, parent in blocks:
        if block not in left:
            continue
        chain = []
        tip: int | None = block
        while tip is not None and left.pop(tip, None) is not None:
            chain.append(tip)
            tip = children.get(tip)
        yield BlocksStored(parent, pack_u64(chain), tier)
