"""Pure. Which worker holds how much of a prompt's beginning, in which tier."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import or_
from typing import NamedTuple, get_args

from bus.messages.base import unpack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, Tier
from kv_events.held import HeldBlocks
from kv_events.tier import TierIndex, scan_ends

TIERS: tuple[Tier, ...] = get_args(Tier)
MAX_BLOCKS = 10_000_000
MAX_NAMED_SETS = 4096


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
    others go, and the workers concerned are `is_truncated`.
    """

    def __init__(self, *, max_blocks: int = MAX_BLOCKS) -> None:
        self.max_blocks = max_blocks
        self._num_blocks = 0
        self._tiers: dict[Tier, TierIndex] = {tier: TierIndex() for tier in TIERS}
        self._device = self._tiers["device"]
        self._slots: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._truncated: set[str] = set()
        self._names: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Return the number of blocks, each counted once per worker and tier."""
        return self._num_blocks

    def workers(self) -> list[str]:
        """Return all workers that were named since they were last removed."""
        return list(self._slots)

    def apply(self, worker: str, events: Iterable[KvEvent]) -> None:
        """Apply one worker's events in their order.

        Storing what is held and removing what is not change nothing. Raises `Malformed` at a broken column; the
        events before it are applied.
        """
        slot = self._take_slot(worker)
        for event in events:
            match event:
                case BlocksStored():
                    self._store(worker, slot, event.tier, event.parent_hash, unpack_u64(event.block_hashes))
                case BlocksRemoved():
                    self._num_blocks -= self._tiers[event.tier].remove(slot, unpack_u64(event.block_hashes))
                case BlocksCleared():
                    self._num_blocks -= self._tiers[event.tier].clear(slot)

    def replace(self, worker: str, hashes_by_tier: Mapping[Tier, Iterable[int]]) -> None:
        """Let a worker hold these blocks and no others.

        Their parents are unknown, so this worker's prefixes are followed block by block until all these are gone.
        Where parents are known, `remove_worker` and `apply` of stored chains keep queries short.
        """
        self.remove_worker(worker)
        slot = self._take_slot(worker)
        for tier, hashes in hashes_by_tier.items():
            blocks = iter(hashes)
            room = self.max_blocks - self._num_blocks
            self._num_blocks += self._tiers[tier].store_unlinked(slot, islice(blocks, room))
            if next(blocks, None) is not None:
                self._truncated.add(worker)

    def remove_worker(self, worker: str) -> None:
        """Forget a worker and its blocks."""
        slot = self._slots.pop(worker, None)
        if slot is None:
            return
        for tier in self._tiers.values():
            self._num_blocks -= tier.clear(slot)
        self._free_slots.append(slot)
        self._truncated.discard(worker)
        self._names.clear()

    def num_blocks(self, worker: str, tier: Tier = "device") -> int:
        """Return how many blocks a worker holds in a tier."""
        return len(self._held(worker, tier))

    def digest(self, worker: str) -> tuple[int, int]:
        """Return number and xor of the hashes that a worker holds in its device tier."""
        held = self._held(worker, "device")
        return len(held), held.xor

    def is_truncated(self, worker: str) -> bool:
        """Whether blocks of this worker were left out since it was last removed or replaced: its digest is too low."""
        return worker in self._truncated

    def match(self, hashes: Sequence[int]) -> dict[str, Overlap]:
        """Return how long a prefix of this chain of block hashes each worker holds; who holds none is absent."""
        if not hashes:
            return {}
        ends = self._device.ends(hashes)
        if any(tier.masks for tier in self._tiers.values() if tier is not self._device):
            return self._match_tiers(hashes, ends)
        found: dict[str, Overlap] = {}
        for length, mask in ends:
            found.update(dict.fromkeys(self._name(mask), Overlap(length, length, length, length)))
        return found

    def _match_tiers(self, hashes: Sequence[int], ends: list[tuple[int, int]]) -> dict[str, Overlap]:
        """Match with blocks in several tiers; each step counts one more, and a prefix may change between them."""
        lengths = [self._lengths(ends)]
        counted = [self._device]
        everyone = (1 << len(self._slots) + len(self._free_slots)) - 1
        for name in TIERS[1:]:
            tier = self._tiers[name]
            if not tier.masks:
                lengths.append(lengths[-1])
                continue
            counted.append(tier)
            holders = counted[0].holders(hashes)
            for other in counted[1:]:
                holders = map(or_, holders, other.holders(hashes))
            lengths.append(self._lengths(scan_ends(holders, everyone)))
        device, host, disk, remote = lengths
        return {
            worker: Overlap(device.get(worker, 0), host.get(worker, 0), disk.get(worker, 0), length)
            for worker, length in remote.items()
        }

    def _lengths(self, ends: list[tuple[int, int]]) -> dict[str, int]:
        return {worker: length for length, mask in ends for worker in self._name(mask)}

    def _store(self, worker: str, slot: int, tier: Tier, parent: int, hashes: Sequence[int]) -> None:
        room = self.max_blocks - self._num_blocks
        if len(hashes) > room:
            held = self._held(worker, tier).parents
            if any(block not in held for block in hashes):
                self._truncated.add(worker)
            hashes = hashes[:room]
        self._num_blocks += self._tiers[tier].store(slot, parent, hashes)

    def _held(self, worker: str, tier: Tier) -> HeldBlocks:
        slot = self._slots.get(worker)
        return HeldBlocks() if slot is None else self._tiers[tier].held(slot)

    def _take_slot(self, worker: str) -> int:
        slot = self._slots.get(worker)
        if slot is None:
            slot = self._slots[worker] = self._free_slots.pop() if self._free_slots else len(self._slots)
        return slot

    def _name(self, mask: int) -> tuple[str, ...]:
        """Return the workers of a bitset; sets come again and again, so the last few thousand are kept."""
        names = self._names.get(mask)
        if names is None:
            if len(self._names) >= MAX_NAMED_SETS:
                self._names.clear()
            names = self._names[mask] = tuple(worker for worker, slot in self._slots.items() if mask >> slot & 1)
        return names
