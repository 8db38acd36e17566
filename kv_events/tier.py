"""Pure. Who holds which block in one tier: block hash -> bitset of worker slots."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from kv_events.held import HeldBlocks

Ends = list[tuple[int, int]]
"""(length, bitset): the prefix of these workers ends after `length` blocks, at least one; no worker comes twice."""


class TierIndex:
    """The blocks of every worker in one tier; a worker is a small number, its slot."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        self._held: dict[int, HeldBlocks] = {}
        self._torn = 0
        """Bitset of workers that may hold a block without all before it."""

    def held(self, slot: int) -> HeldBlocks:
        """Return the blocks of a worker, to be read only."""
        return self._held.get(slot) or HeldBlocks()

    def store(self, slot: int, parent: int, hashes: Sequence[int]) -> int:
        """Add a chain to a worker's blocks; return how many were new."""
        held = self._held.setdefault(slot, HeldBlocks())
        return self._mark(slot, held, held.add(parent, hashes))

    def store_unlinked(self, slot: int, hashes: Iterable[int]) -> int:
        """Add blocks in no order to a worker's; return how many were new."""
        held = self._held.setdefault(slot, HeldBlocks())
        return self._mark(slot, held, held.add_unlinked(hashes))

    def remove(self, slot: int, hashes: Iterable[int]) -> int:
        """Remove blocks from a worker's; return how many it held."""
        held = self._held.get(slot)
        if held is None:
            return 0
        removed = held.discard(hashes)
        self._unmark(slot, removed)
        self._watch(slot, held)
        if not held:
            del self._held[slot]
        return len(removed)

    def clear(self, slot: int) -> int:
        """Remove all blocks of a worker, and return how many it held."""
        held = self._held.pop(slot, None)
        if held is None:
            return 0
        self._unmark(slot, held.parents)
        self._torn &= ~(1 << slot)
        if len(self.masks) < len(held):
            # A dict never shrinks by itself.
            self.masks = self.masks.copy()
        return len(held)

    def ends(self, hashes: Sequence[int]) -> Ends:
        """Return where the workers' prefixes of a chain end: whole ones by bisection, the others block by block."""
        first = self.masks.get(hashes[0], 0)
        ends = _bisect_ends(self.masks.get, hashes, first & ~self._torn)
        if first & self._torn:
            ends += scan_ends(self.holders(hashes), first & self._torn)
        return ends

    def holders(self, hashes: Iterable[int]) -> Iterator[int]:
        """Yield the bitset of each block."""
        get = self.masks.get
        return (get(block, 0) for block in hashes)

    def _mark(self, slot: int, held: HeldBlocks, added: Sequence[int]) -> int:
        masks, bit = self.masks, 1 << slot
        before: int | None = None
        after = bit
        for block in added:
            mask = masks.get(block)
            if mask is not before:
                # Blocks of one chain mostly have the same holders: one int serves them all.
                before, after = mask, (mask or 0) | bit
            masks[block] = after
        self._watch(slot, held)
        return len(added)

    def _unmark(self, slot: int, removed: Iterable[int]) -> None:
        masks, others = self.masks, ~(1 << slot)
        before, after = 0, 0
        for block in removed:
            mask = masks[block]
            if mask is not before:
                before, after = mask, mask & others
            if after:
                masks[block] = after
            else:
                del masks[block]

    def _watch(self, slot: int, held: HeldBlocks) -> None:
        if held.is_whole:
            self._torn &= ~(1 << slot)
        else:
            self._torn |= 1 << slot


def scan_ends(holders: Iterable[int], alive: int) -> Ends:
    """Follow the workers `alive` from the start of a chain whose blocks are held by `holders`."""
    ends: Ends = []
    length = 0
    for mask in holders:
        left = alive & mask
        if left != alive:
            if length:
                ends.append((length, alive ^ left))
            alive = left
            if not alive:
                return ends
        length += 1
    if alive and length:
        ends.append((length, alive))
    return ends


def _bisect_ends(get: Callable[[int, int], int], hashes: Sequence[int], alive: int) -> Ends:
    """Find the ends of workers that hold the first block and no block without all before it.

    Probes stay on a stack: each bounds the search for all ends to the left of it.
    """
    ends: Ends = []
    low = 0
    probes = [(len(hashes), 0)]
    while alive:
        high, mask = probes[-1]
        if mask == alive:
            low = high
            probes.pop()
        elif high - low == 1:
            ends.append((high, alive ^ mask))
            alive, low = mask, high
            probes.pop()
        else:
            middle = (low + high) >> 1
            probes.append((middle, alive & get(hashes[middle], 0)))
    return ends
