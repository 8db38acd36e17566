"""Pure. What the next step computes: continuous batching with chunked prefill over a pool of KV blocks.

First come, first served. Every decoding sequence gets its token in every step; prompts share what is left of the
step's token budget, in order. A sequence is admitted when the pool has room for all its tokens, so only decoding can
run out of blocks; then the latest arrivals give theirs back and start again later (preemption by recomputation, much
of which the prefix cache takes off). Invariant: whatever runs arrived before whatever waits.
"""

from collections import deque

import msgspec

from bus.messages.inference import FinishReason
from components.engines.batching.pool import START, BlockPool
from components.engines.batching.sequence import Sequence


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Compute the `count` tokens of `sequence` that follow its first `start`."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Say whether the next token can be sampled after this chunk."""
        return self.start + self.count == len(self.sequence.tokens)


class Plan(msgspec.Struct, frozen=True, gc=False):
    """One step: one token of each sequence in `decode`, those with the longest context first, then the chunks."""

    decode: list[Sequence]
    prefill: list[Chunk]
    num_preempted: int

    @property
    def sampling(self) -> list[Sequence]:
        """Sequences that get a new token in this step, in the order of the rows of logits."""
        return self.decode + [chunk.sequence for chunk in self.prefill if chunk.is_last]


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A sequence that left the scheduler, and why."""

    sequence: Sequence
    reason: FinishReason
    error: str = ""
    """As `Ended.error`."""


class Scheduler:
    """The waiting and the running sequences. Not thread-safe: one thread calls it, between steps."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_running: int, max_batch_tokens: int) -> None:
        if max_batch_tokens < max_running:
            raise ValueError("every running sequence needs room for its token in every step")
        self.pool = pool
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._block_size = block_size
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._sequences: dict[int, Sequence] = {}

    @property
    def prefill_tokens(self) -> int:
        """Tokens of waiting and half-computed sequences that are still to compute."""
        running = sum(sequence.num_remaining for sequence in self.running if sequence.num_remaining > 1)
        return running + self.waiting_tokens

    @property
    def waiting_tokens(self) -> int:
        """Tokens of waiting sequences, those that will be found in the cache included."""
        return sum(sequence.num_remaining for sequence in self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits into the pool at its full length."""
        self._sequences[sequence.key] = sequence
        self.waiting.append(sequence)

    def abort(self, key: int) -> None:
        """Forget a sequence in any state and release its blocks; unknown keys are no error."""
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            self.pool.release(sequence.blocks)
            (self.running if sequence.blocks else self.waiting).remove(sequence)

    def schedule(self) -> Plan:
        """Decide the next step and take the blocks that it needs; empty lists mean that there is nothing to do.

        Blocks that the step fills become known at once: a later sequence of the same plan may share them, since a layer
        writes the keys and values of the whole step before it reads any.
        """
        decode, num_preempted = self._schedule_decode()
        decode.sort(key=lambda sequence: len(sequence.blocks), reverse=True)
        budget = self._max_batch_tokens - len(decode)
        prefill: list[Chunk] = []
        for sequence in self.running:
            if sequence.num_remaining > 1 and budget > 0:
                budget -= self._schedule_chunk(sequence, budget, prefill)
        while budget > 0 and self.waiting and len(self.running) < self._max_running and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            budget -= self._schedule_chunk(sequence, budget, prefill)
        return Plan(decode, prefill, num_preempted)

    def finish(self, plan: Plan, tokens: list[int], broken: frozenset[int]) -> list[Outcome]:
        """Take the outcome of a step: one token for each of `plan.sampling`. Return the sequences that ended.

        Those at the rows `broken` have no usable token: they end as aborted and keep their blocks, for the caller to
        `discard`; the blocks of all others are released.
        """
        sampling = plan.sampling
        for sequence in plan.decode:
            sequence.num_computed += 1
        for chunk in plan.prefill:
            chunk.sequence.num_computed += chunk.count
        ended: list[Outcome] = []
        for row, (sequence, token) in enumerate(zip(sampling, tokens, strict=True)):
            if row in broken:
                ended.append(Outcome(sequence, "abort"))
            elif reason := "stop" if sequence.is_embedding else sequence.append(token):
                self.pool.release(sequence.blocks)
                ended.append(Outcome(sequence, reason))
        if ended:
            for outcome in ended:
                del self._sequences[outcome.sequence.key]
            self.running = [sequence for sequence in self.running if sequence.key in self._sequences]
        return ended

    def _schedule_decode(self) -> tuple[list[Sequence], int]:
        decode: list[Sequence] = []
        num_preempted = 0
        for sequence in self.running.copy():
            if not sequence.blocks:  # it and all after it were preempted
                break
            if sequence.num_remaining > 1:
                continue
            if sequence.num_computed == len(sequence.blocks) * self._block_size:
                while not self.pool.num_available and sequence.blocks:
                    self._preempt(self.running.pop())
                    num_preempted += 1
                if not sequence.blocks:
                    break
                sequence.blocks.extend(self.pool.allocate(1))
            self._store_full(sequence, sequence.num_computed + 1)
            decode.append(sequence)
        return decode, num_preempted

    def _schedule_chunk(self, sequence: Sequence, budget: int, prefill: list[Chunk]) -> int:
        chunk = Chunk(sequence, sequence.num_computed, min(budget, sequence.num_remaining))
        self._store_full(sequence, chunk.start + chunk.count)
        prefill.append(chunk)
        return chunk.count

    def _admit(self, sequence: Sequence) -> bool:
        """Give `sequence` blocks for all its tokens, if there are enough of them.

        At least the last token is computed even if all are cached: its logits are needed. One block per running
        sequence stays free, or the next decode steps would preempt what was just admitted.
        """
        num_full = (len(sequence.tokens) - 1) // self._block_size
        hashes = [] if sequence.needs_whole_prompt else sequence.hashes(num_full, self._block_size)
        shared = self.pool.match_prefix(hashes)
        num_new = -(-len(sequence.tokens) // self._block_size) - len(shared)
        if num_new + self.pool.num_cached(shared) + len(self.running) > self.pool.num_available:
            return False
        self.pool.share(shared)
        sequence.blocks.extend((*shared, *self.pool.allocate(num_new)))
        sequence.num_stored = len(shared)
        sequence.num_computed = len(shared) * self._block_size
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.cached_tokens = min(sequence.num_computed, sequence.num_prompt)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.forget_computed()
        self.waiting.appendleft(sequence)

    def _store_full(self, sequence: Sequence, num_tokens: int) -> None:
        """Make known the blocks that are full once `num_tokens` tokens are computed."""
        first, last = sequence.num_stored, num_tokens // self._block_size
        if last > first:
            hashes = sequence.hashes(last, self._block_size)
            parent = hashes[first - 1] if first else START
            self.pool.store(parent, hashes[first:], sequence.blocks[first:last])
            sequence.num_stored = last
