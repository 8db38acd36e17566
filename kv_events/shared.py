"""Pure. Which blocks are in one tier that all workers of a model share."""

from array import array
from collections.abc import Iterable, Sequence

from bus.messages.base import unpack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from kv_events.runs import RunIndex

_FLEET = ""
"""Whose the blocks are."""

Span = tuple[int, int]
"""First position in a chain of hashes, and the one behind the last."""


class SharedBlocks:
    """What was told of one tier lately, at most `max_blocks`.

    Nobody counts what such a tier drops by itself, for its age or for want of room, so what is known here fades: there
    are two generations, and when the young one is full the old one is forgotten. Who looks in vain tells so.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_young = max(1, max_blocks // 2)
        self._young, self._old = RunIndex(), RunIndex()

    def __len__(self) -> int:
        """Return the number of blocks; one that was told again long after counts twice for a while."""
        return len(self._young.run_of) + len(self._old.run_of)

    def apply(self, event: KvEvent) -> None:
        """Note what an event tells. Raises `Malformed` at a broken column."""
        match event:
            case BlocksStored():
                self.store(event.parent_hash, unpack_u64(event.block_hashes))
            case BlocksRemoved():
                self.remove(unpack_u64(event.block_hashes))
            case BlocksCleared():
                self.clear()

    def store(self, parent: int, blocks: "array[int]") -> None:
        """Note blocks that follow each other, the first one behind `parent`."""
        if len(self._young.run_of) + len(blocks) > self._max_young:
            self._young, self._old = RunIndex(), self._young
        self._young.store(_FLEET, parent, blocks[: self._max_young])

    def remove(self, blocks: "array[int]") -> None:
        """Note that blocks are not there (any more)."""
        self._young.remove(_FLEET, blocks)
        self._old.remove(_FLEET, blocks)

    def clear(self) -> None:
        """Know nothing any more."""
        self._young, self._old = RunIndex(), RunIndex()

    def has(self, block: int) -> bool:
        """Whether a block is known to be there."""
        return block in self._young.run_of or block in self._old.run_of

    def spans(self, hashes: Sequence[int]) -> list[Span]:
        """Return which parts of a chain are there, in order and apart from each other."""
        if not hashes:
            return []
        found = [
            (start, start + min(length, held[_FLEET]))
            for generation in (self._young, self._old)
            if generation.runs
            for start, length, held in generation.spans(hashes)
        ]
        return merge_spans(sorted(found))


def reach(start: int, spans: Iterable[Span]) -> int:
    """Return how far a prefix of `start` blocks goes on with what `spans`, in their order, have."""
    for first, end in spans:
        if first > start:
            break
        start = max(start, end)
    return start


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Join spans, given in the order of their starts, that meet or overlap."""
    merged: list[Span] = []
    for first, end in spans:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged
