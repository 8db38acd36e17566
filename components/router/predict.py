"""Pure. Prefixes that a worker will hold soon, because a request with them was just sent there.

The worker tells of its blocks only after the step that computes them; a burst of equal prompts comes before that. What
is predicted is believed for `ttl_s` at least and one and a half of it at most; once the worker's own events say the
same, it makes no difference.
"""

from collections.abc import Sequence

MAX_HASHES = 1 << 20
"""Held at a time; what was predicted first is forgotten first, half of it at once."""


class Predictions:
    """Chains of block hashes, each with the bit set of the workers (by number) that were sent a prompt with it.

    Three generations: entries go to the young one, and all move on by one after half of `ttl_s`, or when that is full.
    """

    def __init__(self, ttl_s: float, *, max_hashes: int = MAX_HASHES) -> None:
        self._half_life_s = ttl_s / 2
        self._max_young = max_hashes // 2
        self._young: dict[int, int] = {}
        self._middle: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._turned_at = 0.0

    def __len__(self) -> int:
        return len(self._young) + len(self._middle) + len(self._old)

    def add(self, worker: int, hashes: Sequence[int], now: float) -> None:
        """Expect `worker` to hold the blocks of this chain."""
        self._turn(now)
        bit = 1 << worker
        young = self._young
        if len(young) + len(hashes) > self._max_young:
            young = {}
            self._young, self._middle, self._old = young, self._young, {}
            self._turned_at = now
        for block_hash in hashes[: self._max_young]:
            young[block_hash] = young.get(block_hash, 0) | bit

    def match(self, hashes: Sequence[int], now: float) -> dict[int, int]:
        """Return for each worker how many blocks from the start of this chain it is expected to hold."""
        self._turn(now)
        depths: dict[int, int] = {}
        for generation in (self._young, self._middle, self._old):
            for length, mask in _spans(generation, hashes):
                rest = mask
                while rest:
                    worker = rest.bit_length() - 1
                    rest ^= 1 << worker
                    if length > depths.get(worker, 0):
                        depths[worker] = length
        return depths

    def remove_worker(self, worker: int) -> None:
        """Forget a worker; its number may be given to another."""
        keep = ~(1 << worker)
        for generation in (self._young, self._middle, self._old):
            for block_hash, mask in generation.items():
                generation[block_hash] = mask & keep

    def _turn(self, now: float) -> None:
        turns = (now - self._turned_at) // self._half_life_s
        if turns >= 3:
            self._young, self._middle, self._old = {}, {}, {}
            self._turned_at = now
            return
        for _ in range(int(turns)):
            self._young, self._middle, self._old = {}, self._young, self._middle
            self._turned_at += self._half_life_s


def _spans(generation: dict[int, int], hashes: Sequence[int]) -> list[tuple[int, int]]:
    """Return where workers drop out along a chain: lengths, each with the bit set of those that come so far.

    Chains are added whole, so whoever has a block here has all before it: between two equal sets nobody drops out.
    """
    if not hashes or not generation:
        return []
    get = generation.get
    spans = []
    start, mask = 0, get(hashes[0], 0)
    while mask:
        # `low` has this set, `high` has a smaller one or is the end.
        low, high = start, len(hashes)
        if get(hashes[-1], 0) == mask:
            low = high - 1
        while high - low > 1:
            middle = (low + high) // 2
            if get(hashes[middle], 0) == mask:
                low = middle
            else:
                high = middle
        rest = get(hashes[high], 0) if high < len(hashes) else 0
        spans.append((high, mask & ~rest))
        start, mask = high, rest
    return spans
