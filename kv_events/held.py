"""Pure. The blocks that one worker holds in one tier, and whether their chains are whole."""

from collections.abc import Iterable, Sequence


class HeldBlocks:
    """A set of block hashes that knows whether each block's parent is held as well.

    While that is so (`is_whole`), holding a block implies holding all before it, and whoever looks for the
    end of a prefix may bisect. Engines evict the end of a chain first, so this is the rule; a hole is noticed
    when it appears and when it closes. The price is one reference per block to its parent: leaves, forks and
    holes are few and kept apart. It trusts that a block always comes with the same parent, as chained hashes do.
    """

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}
        """Parent of every held block; a block from a snapshot, whose parent nobody told, names itself."""
        self.xor = 0
        """Of all held hashes."""
        self._leaves: set[int] = set()
        self._forks: dict[int, int] = {}
        """Number of held children beyond the first (of a block without known parent: all of them)."""
        self._missing: dict[int, int] = {}
        """Blocks that are not held although this many of their children are."""
        self._num_unlinked = 0

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def is_whole(self) -> bool:
        """Whether every held block's parent is known and held, or the root."""
        return not self._missing and not self._num_unlinked

    def add(self, parent: int, hashes: Sequence[int]) -> list[int]:
        """Add a chain that hangs below `parent` (0: the root); return the blocks that are new."""
        parents, added, xor = self.parents, list[int](), self.xor
        if hashes and hashes[0] == parent:
            parent = 0
        tip: int | None = None
        for block in hashes:
            if block not in parents:
                parents[block] = parent
                xor ^= block
                added.append(block)
                if parent is not tip:
                    self._gain_child(parent)
                tip = block
                if block in self._missing:
                    self._fill_hole(block)
                    tip = None
            elif tip is not None:
                self._leaves.add(tip)
                tip = None
            parent = block
        if tip is not None:
            self._leaves.add(tip)
        self.xor = xor
        return added

    def add_unlinked(self, hashes: Iterable[int]) -> list[int]:
        """Add blocks whose parents are unknown, return the new ones. Until all of them left, the set is not whole."""
        parents, added = self.parents, list[int]()
        for block in hashes:
            if block not in parents:
                parents[block] = block
                self.xor ^= block
                added.append(block)
                children = self._missing.pop(block, 0)
                if children:
                    self._forks[block] = children
        self._num_unlinked += len(added)
        return added

    def discard(self, hashes: Iterable[int]) -> list[int]:
        """Remove those of `hashes` that are held, and return them."""
        parents, leaves, removed = self.parents, self._leaves, list[int]()
        for block in hashes:
            parent = parents.pop(block, None)
            if parent is None:
                continue
            self.xor ^= block
            removed.append(block)
            if block in leaves:
                leaves.remove(block)
                self._lose_child(parent)
                continue
            children = self._forks.pop(block, 0)
            if parent == block:
                self._num_unlinked -= 1
            else:
                children += 1
                self._lose_child(parent)
            if children:
                self._missing[block] = children
        return removed

    def _fill_hole(self, block: int) -> None:
        """Give a block that came back the children that waited for it."""
        children = self._missing.pop(block)
        if children > 1:
            self._forks[block] = children - 1

    def _gain_child(self, parent: int) -> None:
        if parent in self._leaves:
            self._leaves.remove(parent)
        elif parent in self.parents:
            self._forks[parent] = self._forks.get(parent, 0) + 1
        elif parent:
            self._missing[parent] = self._missing.get(parent, 0) + 1

    def _lose_child(self, parent: int) -> None:
        if parent in self._forks:
            _decrement(self._forks, parent)
        elif parent in self.parents:
            self._leaves.add(parent)
        elif parent in self._missing:
            _decrement(self._missing, parent)


def _decrement(counts: dict[int, int], key: int) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
