"""Pure. Which KV block holds what: reference counts, the prefix cache, and the order of eviction.

A block is *free* (its content means nothing), *used* (some sequence refers to it), or *cached* (nobody refers to it,
but its content is known by hash and can be shared again until the space is needed). Used blocks may be known as well.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import msgspec

from bus.messages.base import pack_u64
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent

START = 0
"""The parent that events name for the first block of a prompt."""


class _Stored(msgspec.Struct, gc=False):
    parent_hash: int
    hashes: list[int]


class _Removed(msgspec.Struct, gc=False):
    hashes: list[int]


class BlockPool:
    """Hands out the blocks `0 .. num_blocks - 1`; every method takes time proportional to the blocks it names."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._references = [0] * num_blocks
        self._hash_of: list[int | None] = [None] * num_blocks
        self._block_of: dict[int, int] = {}
        self._events: list[_Stored | _Removed] = []

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: the free and the cached ones."""
        return len(self._free) + len(self._cached)

    def match_prefix(self, hashes: Iterable[int]) -> list[int]:
        """Return the blocks of the longest known prefix of a hash chain, without taking them."""
        matched = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            matched.append(block)
        return matched

    def num_cached(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` to which nobody refers: sharing them makes so many fewer available."""
        return sum(self._references[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each of these known blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each, evicting what was released longest ago.

        The caller has checked `num_available`; `IndexError` or `KeyError` means that it has not.
        """
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._cached.popitem(last=False)
                self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def store(self, parent_hash: int, hashes: Sequence[int], blocks: Sequence[int]) -> None:
        """Make full blocks known by hash, each the child of the one before.

        A hash that another block bears already keeps that block: the copy here stays unknown and is free once released.
        """
        for block_hash, block in zip(hashes, blocks, strict=True):
            if block_hash not in self._block_of:
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash
                self._note_stored(parent_hash, block_hash)
            parent_hash = block_hash

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a sequence, given from its first to its last.

        The last one is the first to be evicted: a chain is of no use without its beginning.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def discard(self, blocks: Sequence[int]) -> list[int]:
        """Release blocks whose content is worthless; return those that became free."""
        discarded = []
        self.release(blocks)
        for block in blocks:
            if self._references[block] == 0:
                if self._hash_of[block] is not None:
                    del self._cached[block]
                    self._forget(block)
                    self._free.append(block)
                discarded.append(block)
        return discarded

    def take_events(self) -> list[KvEvent]:
        """Return what became known and unknown since the last call, in order."""
        events: list[KvEvent] = []
        for note in self._events:
            if isinstance(note, _Stored):
                events.append(BlocksStored(note.parent_hash, pack_u64(note.hashes)))
            else:
                events.append(BlocksRemoved(pack_u64(note.hashes)))
        self._events.clear()
        return events

    def known_hashes(self) -> set[int]:
        """Return every hash that `match_prefix` would find."""
        return set(self._block_of)

    def check(self, used: Iterable[Sequence[int]]) -> None:
        """Raise `AssertionError` unless the books balance, given the block lists of all live sequences."""
        references = [0] * self.num_blocks
        for blocks in used:
            for block in blocks:
                references[block] += 1
        assert references == self._references, "reference counts differ from the sequences' blocks"
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        idle = {block for block, count in enumerate(references) if count == 0}
        assert free | cached == idle, "idle blocks are neither free nor cached"
        assert not free & cached, "a block is both free and cached"
        known = {block: block_hash for block, block_hash in enumerate(self._hash_of) if block_hash is not None}
        assert {block_hash: block for block, block_hash in known.items()} == self._block_of, "the index is wrong"
        assert cached == idle & known.keys(), "cached means idle and known"

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        assert block_hash is not None
        self._hash_of[block] = None
        del self._block_of[block_hash]
        last = self._events[-1] if self._events else None
        if isinstance(last, _Removed):
            last.hashes.append(block_hash)
        else:
            self._events.append(_Removed([block_hash]))

    def _note_stored(self, parent_hash: int, block_hash: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, _Stored) and last.hashes[-1] == parent_hash:
            last.hashes.append(block_hash)
        else:
            self._events.append(_Stored(parent_hash, [block_hash]))
