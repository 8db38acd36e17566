"""Pure. Prefixes that a worker will hold soon, because a request with them was just sent there.

The worker tells of its blocks only after the step that computes them; a burst of equal prompts comes before that. What
is predicted is believed for `ttl_s` at least and one and a half of it at most; once the worker's own events say the
same, it makes no difference.
"""

from array import array

from kv_events.runs import RunIndex

MAX_HASHES = 1 << 20
"""Held at a time; what was predicted first is forgotten first, half of it at once."""


class Predictions:
    """Chains of block hashes, each with the workers that were sent a prompt with it.

    Three generations: chains go to the young one, and all move on by one after half of `ttl_s`, or when that is full.
    """

    def __init__(self, ttl_s: float, *, max_hashes: int = MAX_HASHES) -> None:
        self._half_life_s = ttl_s / 2
        self._max_young = max_hashes // 2
        self._young, self._middle, self._old = RunIndex(), RunIndex(), RunIndex()
        self._turned_at = 0.0

    def __len__(self) -> int:
        return sum([len(generation.run_of) for generation in (self._young, self._middle, self._old)])

    def add(self, worker: str, chain: "array[int]", now: float) -> None:
        """Expect `worker` to hold the blocks of this chain."""
        self._turn(now)
        if len(self._young.run_of) + len(chain) > self._max_young:
            self._young, self._middle, self._old = RunIndex(), self._young, RunIndex()
            self._turned_at = now
        self._young.store(worker, 0, chain[: self._max_young])

    def match(self, chain: "array[int]", now: float) -> dict[str, int]:
        """Return for each worker how many blocks from the start of this chain it is expected to hold."""
        self._turn(now)
        lengths = self._young.match(chain)
        for generation in (self._middle, self._old):
            if generation.runs:
                merge_longest(lengths, generation.match(chain))
        return lengths

    def remove_worker(self, worker: str) -> None:
        """Expect nothing of a worker any more."""
        for generation in (self._young, self._middle, self._old):
            generation.clear(worker)

    def _turn(self, now: float) -> None:
        turns = (now - self._turned_at) // self._half_life_s
        if turns >= 3:
            self._young, self._middle, self._old = RunIndex(), RunIndex(), RunIndex()
            self._turned_at = now
            return
        for _ in range(int(turns)):
            self._young, self._middle, self._old = RunIndex(), self._young, self._middle
            self._turned_at += self._half_life_s


def merge_longest(lengths: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    """Let `lengths` have the longer one for each worker, and return it."""
    for worker, length in others.items():
        if length > lengths.get(worker, 0):
            lengths[worker] = length
    return lengths
