"""Pure. Who holds which block in one tier, kept as runs: pieces of chains of which each worker holds a beginning."""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import count, repeat

from kv_events.columns import common_length, xor_of

Hashes = Sequence[int]
MAX_TOGGLED = 4096
"""Hashes of a worker that wait to be folded into its xor: many at a time cost less, and it is asked for seldom."""


class Run:
    """Blocks that follow each other, and how many of them, from the first, each worker holds (at least one)."""

    __slots__ = ("_left_at", "blocks", "held")

    def __init__(self, blocks: "array[int]", held: dict[str, int]) -> None:
        self.blocks = blocks
        self.held = held
        self._left_at = 0
        """Where the last chain that left the run did so: most leave it where others did."""

    def follow(self, hashes: Hashes, start: int) -> int:
        """Return how many of the blocks come in a chain from `start` on; as hashes are chained, a bisection tells."""
        blocks, left_at = self.blocks, self._left_at
        low, high = 0, min(len(blocks), len(hashes) - start)
        if blocks[high - 1] == hashes[start + high - 1]:
            return high
        if 0 < left_at < high and blocks[left_at - 1] == hashes[start + left_at - 1]:
            if blocks[left_at] != hashes[start + left_at]:
                return left_at
            low = left_at + 1
        while low < high:
            middle = (low + high) >> 1
            if blocks[middle] == hashes[start + middle]:
                low = middle + 1
            else:
                high = middle
        self._left_at = low
        return low


class Holding:
    """What one worker holds."""

    __slots__ = ("_toggled", "_xor", "num_blocks", "runs")

    def __init__(self) -> None:
        self.num_blocks = 0
        self.runs: set[int] = set()
        self._xor = 0
        self._toggled = array("Q")

    @property
    def xor(self) -> int:
        """Of all hashes held."""
        self._fold()
        return self._xor

    def toggle(self, blocks: "array[int]") -> None:
        """Count blocks into the xor, or out of it."""
        self._toggled.extend(blocks)
        if len(self._toggled) >= MAX_TOGGLED:
            self._fold()

    def _fold(self) -> None:
        if self._toggled:
            self._xor ^= xor_of(self._toggled)
            self._toggled = array("Q")


class RunIndex:
    """The blocks of every worker in one tier.

    Workers store chains and evict them from the end, so one number per worker and run says it all, whatever the
    length: a chain is followed run by run, not block by block. A fork begins a run of its own and splits none. Where
    a worker lacks a block in the middle, the run is split; this costs time and memory, not exactness. That an equal
    hash means equal blocks before it is relied upon.
    """

    def __init__(self) -> None:
        self.run_of: dict[int, int] = {}
        """Number of the run that every known block is in: plain numbers, which the garbage collector need not visit."""
        self.runs: dict[int, Run] = {}
        """Of each run at least one worker holds all."""
        self.holdings: dict[str, Holding] = {}
        self._numbers = count()

    def store(self, worker: str, parent: int, blocks: "array[int]") -> int:
        """Let a worker hold a chain that follows the block `parent`; return how many blocks it did not hold."""
        holding = self.holdings.get(worker)
        if holding is None:
            holding = self.holdings[worker] = Holding()
        before, at = holding.num_blocks, 0
        while at < len(blocks):
            number = self.run_of.get(blocks[at])
            if number is None:
                at += self._grow(worker, holding, parent, blocks[at:] if at else blocks)
            else:
                at += self._join(worker, holding, number, blocks, at)
            parent = blocks[at - 1]
        if not holding.num_blocks:
            del self.holdings[worker]
        return holding.num_blocks - before

    def remove(self, worker: str, blocks: "array[int]") -> int:
        """Let a worker hold these blocks no more, best given from the end of their chain; return how many it held."""
        holding = self.holdings.get(worker)
        if holding is None:
            return 0
        before, at = holding.num_blocks, 0
        while at < len(blocks):
            number = self.run_of.get(blocks[at])
            held = 0 if number is None else self.runs[number].held.get(worker, 0)
            if number is None or not held:
                at += 1
                continue
            run = self.runs[number].blocks
            if run[held - 1] == blocks[at]:
                ending = run[max(0, held + at - len(blocks)) : held]
                ending.reverse()
                removed = common_length(ending, 0, blocks, at)
                self._shrink(worker, holding, number, held - removed)
            else:
                first = run.index(blocks[at])
                removed = max(1, min(common_length(run, first, blocks, at), held - first))
                if first + removed < held:
                    number, _ = self._split(number, first + removed)
                if first < held:
                    self._shrink(worker, holding, number, first)
            at += removed
        if not holding.num_blocks:
            del self.holdings[worker]
        return before - holding.num_blocks

    def clear(self, worker: str) -> int:
        """Remove all that a worker holds, and return how many blocks these were."""
        holding = self.holdings.pop(worker, None)
        if holding is None:
            return 0
        num_blocks = holding.num_blocks
        for number in list(holding.runs):
            self._shrink(worker, holding, number, 0)
        if len(self.run_of) < num_blocks:
            # A dict does not shrink by itself.
            self.run_of = self.run_of.copy()
        return num_blocks

    def match(self, hashes: Hashes) -> dict[str, int]:
        """Return how many blocks from the first each worker holds; who holds none is absent."""
        return match_runs(self._find, hashes)

    def spans(self, hashes: Hashes) -> Iterator[tuple[int, int, dict[str, int]]]:
        """Yield the runs along a chain: where each starts, how many blocks they share, who holds how many."""
        start, stop = 0, len(hashes)
        while start < stop:
            run = self._find(hashes[start])
            length = run.follow(hashes, start) if run is not None else 0
            if run is not None and length:
                yield start, length, run.held
            start += length or 1

    def _find(self, block: int) -> Run | None:
        """Return the run that a block is in."""
        number = self.run_of.get(block)
        return None if number is None else self.runs[number]

    def _grow(self, worker: str, holding: Holding, parent: int, blocks: "array[int]") -> int:
        """Take in blocks of which the first is unknown, up to the next known one; return how many."""
        number = self.run_of.get(parent) if parent else None
        run = None if number is None else self.runs[number]
        if number is None or run is None or run.blocks[-1] != parent or run.held.get(worker) != len(run.blocks):
            number, run = next(self._numbers), None
        known = len(self.run_of)
        _exhaust(map(self.run_of.setdefault, blocks, repeat(number)))
        if len(self.run_of) - known != len(blocks):
            blocks = self._keep_new(blocks, number, run.blocks if run else ())
        if run is None:
            run = self.runs[number] = Run(array("Q"), {worker: 0})
            holding.runs.add(number)
        run.blocks.extend(blocks)
        run.held[worker] = len(run.blocks)
        holding.num_blocks += len(blocks)
        holding.toggle(blocks)
        return len(blocks)

    def _keep_new(self, blocks: "array[int]", number: int, known: Hashes) -> "array[int]":
        """Return the blocks before the first that was known or comes twice; let those behind it be unknown again."""
        seen, kept = set(known), array("Q")
        for block in blocks:
            if self.run_of[block] != number or block in seen:
                break
            seen.add(block)
            kept.append(block)
        for block in blocks[len(kept) :]:
            if block not in seen and self.run_of[block] == number:
                del self.run_of[block]
                seen.add(block)
        return kept

    def _join(self, worker: str, holding: Holding, number: int, blocks: "array[int]", at: int) -> int:
        """Let a worker hold known blocks, as far as the run they are in goes; return how many."""
        run = self.runs[number]
        held = run.held.get(worker, 0)
        first = held if held < len(run.blocks) and run.blocks[held] == blocks[at] else run.blocks.index(blocks[at])
        if first > held:
            _, number = self._split(number, first)
            run, first, held = self.runs[number], 0, 0
        length = common_length(run.blocks, first, blocks, at)
        if first + length > held:
            holding.num_blocks += first + length - held
            holding.toggle(run.blocks[held : first + length])
            holding.runs.add(number)
            run.held[worker] = first + length
        return length

    def _shrink(self, worker: str, holding: Holding, number: int, length: int) -> None:
        """Let a worker hold only `length` blocks of a run, and forget those that nobody holds."""
        run = self.runs[number]
        held = run.held[worker]
        holding.num_blocks -= held - length
        holding.toggle(run.blocks[length:held])
        if length:
            run.held[worker] = length
        else:
            del run.held[worker]
            holding.runs.discard(number)
        if held == len(run.blocks):
            longest = max(run.held.values(), default=0)
            _exhaust(map(self.run_of.__delitem__, run.blocks[longest:]))
            del run.blocks[longest:]
            if not longest:
                del self.runs[number]

    def _split(self, number: int, length: int) -> tuple[int, int]:
        """Cut a run after `length` blocks, visiting those of the shorter piece; return the numbers of both."""
        run, other = self.runs[number], next(self._numbers)
        front = {worker: min(held, length) for worker, held in run.held.items()}
        rest = {worker: held - length for worker, held in run.held.items() if held > length}
        if length <= len(run.blocks) // 2:
            first, second = other, number
            moved = Run(run.blocks[:length], front)
            del run.blocks[:length]
            run.held = rest
        else:
            first, second = number, other
            moved = Run(run.blocks[length:], rest)
            del run.blocks[length:]
            run.held = front
        self.runs[other] = moved
        self.run_of.update(zip(moved.blocks, repeat(other)))
        for worker in front:
            runs = self.holdings[worker].runs
            runs.add(first)
            if worker in rest:
                runs.add(second)
            else:
                runs.discard(second)
        return first, second


def match_runs(find: Callable[[int], Run | None], hashes: Hashes) -> dict[str, int]:
    """Return how many blocks from the first each worker holds; who holds none is absent.

    `find` returns the run that begins with a block; where it returns one that only has it, the chain ends there.
    """
    start, stop = 0, len(hashes)
    lengths: dict[str, int] = {}
    following: AbstractSet[str] = frozenset()
    while start < stop:
        run = find(hashes[start])
        length = run.follow(hashes, start) if run is not None else 0
        if run is None or not length:
            break
        held = run.held
        if not start:
            lengths = dict.fromkeys(held, length)
            following = held.keys()
            if min(held.values(), default=0) < length:
                lengths.update((worker, blocks) for worker, blocks in held.items() if blocks < length)
                following = {worker for worker, blocks in held.items() if blocks >= length}
        else:
            following = held.keys() & following
            lengths.update((worker, start + min(held[worker], length)) for worker in following)
            following = {worker for worker in following if held[worker] >= length}
        if not following:
            break
        start += length
    return lengths


def _exhaust(calls: Iterable[object]) -> None:
    """Make all the calls of a `map`, without a loop of the interpreter: most of an index's time goes there."""
    deque(calls, maxlen=0)
