"""Pure. Prefixes that a worker will hold soon, because a request with them was just sent there.

The worker tells of its blocks only after the step that computes them; a burst of equal prompts comes before that. What
is predicted is believed for `ttl_s` at least and one and a half of it at most; once the worker's own events say the
same, it makes no difference.
"""

from array import array

from kv_events.runs import Run, match_runs

MAX_HASHES = 1 << 20
"""Held at a time; what was predicted first is forgotten first, half of it at once."""


class Chains:
    """Whole chains, from their first block on, as runs: pieces of which each worker holds a beginning.

    As nobody comes in the middle of a run, its first block finds it; an index of what workers hold (`RunIndex`) has to
    know every block.
    """

    def __init__(self) -> None:
        self.runs: dict[int, Run] = {}
        """By their first block."""
        self.num_blocks = 0

    def store(self, worker: str, chain: "array[int]") -> None:
        """Let a worker hold a chain."""
        at = 0
        whole: Run | None = None
        """The run before, if the chain has all of it."""
        while at < len(chain):
            run = self.runs.get(chain[at])
            if run is None:
                rest = chain[at:]
                if whole is None:
                    self.runs[rest[0]] = Run(rest, {worker: len(rest)})
                else:
                    whole.blocks.extend(rest)
                    whole.held[worker] = len(whole.blocks)
                self.num_blocks += len(rest)
                return
            length = run.follow(chain, at)
            run.held[worker] = max(length, run.held.get(worker, 0))
            whole = run if length == len(run.blocks) else None
            at += length

    def clear(self, worker: str) -> None:
        """Remove all that a worker holds."""
        for first, run in list(self.runs.items()):
            if run.held.pop(worker, 0) and not run.held:
                self.num_blocks -= len(run.blocks)
                del self.runs[first]


class Predictions:
    """Chains of block hashes, each with the workers that were sent a prompt with it.

    Three generations: chains go to the young one, and all move on by one after half of `ttl_s`, or when that is full.
    """

    def __init__(self, ttl_s: float, *, max_hashes: int = MAX_HASHES) -> None:
        self._half_life_s = ttl_s / 2
        self._max_young = max_hashes // 2
        self._young, self._middle, self._old = Chains(), Chains(), Chains()
        self._turned_at = 0.0

    def __len__(self) -> int:
        return sum([generation.num_blocks for generation in (self._young, self._middle, self._old)])

    def add(self, worker: str, chain: "array[int]", now: float) -> None:
        """Expect `worker` to hold the blocks of this chain."""
        self._turn(now)
        if self._young.num_blocks + len(chain) > self._max_young:
            self._young, self._middle, self._old = Chains(), self._young, Chains()
            self._turned_at = now
        self._young.store(worker, chain[: self._max_young])

    def match(self, chain: "array[int]", now: float) -> dict[str, int]:
        """Return for each worker how many blocks from the start of this chain it is expected to hold."""
        self._turn(now)
        lengths = match_runs(self._young.runs.get, chain)
        for generation in (self._middle, self._old):
            if generation.runs:
                merge_longest(lengths, match_runs(generation.runs.get, chain))
        return lengths

    def remove_worker(self, worker: str) -> None:
        """Expect nothing of a worker any more."""
        for generation in (self._young, self._middle, self._old):
            generation.clear(worker)

    def _turn(self, now: float) -> None:
        turns = (now - self._turned_at) // self._half_life_s
        if turns >= 3:
            self._young, self._middle, self._old = Chains(), Chains(), Chains()
            self._turned_at = now
            return
        for _ in range(int(turns)):
            self._young, self._middle, self._old = Chains(), self._young, self._middle
            self._turned_at += self._half_life_s


def merge_longest(lengths: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    """Let `lengths` have the longer one for each worker, and return it."""
    for worker, length in others.items():
        if length > lengths.get(worker, 0):
            lengths[worker] = length
    return lengths
