"""Pure. What the next step computes: continuous batching with chunked prefill over a pool of KV blocks.

First come, first served, where priority counts like an earlier arrival. Every decoding sequence gets its token in every
step; prompts share what is left of the step's token budget, in order. A sequence is admitted when the pool has room for
all its tokens, so only decoding can run out of blocks; then the latest arrivals give theirs back and start again later
(preemption by recomputation, much of which the prefix cache takes off). Invariant: whatever runs was admitted before
whatever waits.

A sequence whose first blocks come from elsewhere takes its blocks when its turn has come, then *fills*: it holds no
place in the batch while the bytes arrive, and is *ready* for the next place once they did.
"""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items

import msgspec

from bus.messages.inference import FinishReason
from components.engines.batching.leases import Leases
from components.engines.batching.pool import START, BlockPool
from components.engines.batching.sequence import Sequence
from components.engines.exchange import Fill, Note

LEAD = 16
"""Arrivals that one level of priority is worth: so many later ones, of one level more, overtake a sequence, no more."""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Compute the `count` tokens of `sequence` that follow its first `start`."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Say whether the next token can be sampled after this chunk."""
        return self.start + self.count == len(self.sequence.tokens)

    @property
    def context(self) -> int:
        """Number of tokens before each of its tokens, summed."""
        return self.count * self.start + self.count * (self.count - 1) // 2


class Plan(msgspec.Struct, frozen=True, gc=False):
    """One step: one token of each sequence in `decode`, those with the longest context first, then the chunks."""

    decode: list[Sequence]
    prefill: list[Chunk]
    num_preempted: int

    @property
    def sampling(self) -> list[Sequence]:
        """Sequences that get a new token in this step, in the order of the rows of logits."""
        return self.decode + [chunk.sequence for chunk in self.prefill if chunk.is_last]

    @property
    def cached(self) -> list[tuple[int, int]]:
        """As `Step.cached`."""
        last = [chunk.sequence for chunk in self.prefill if chunk.is_last]
        return [(sequence.key, sequence.cached_tokens) for sequence in last if sequence.cached_tokens]

    @property
    def is_empty(self) -> bool:
        """Say whether there is nothing to compute."""
        return not (self.decode or self.prefill)


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
        self.filling: dict[int, Sequence] = {}
        self.ready: deque[Sequence] = deque()
        """Filled, with blocks, and without a place in the batch."""
        self.leases = Leases(pool)
        self._orphans: dict[int, Sequence] = {}
        """Aborted while filling: bytes may still arrive in their blocks."""
        self._block_size = block_size
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._sequences: dict[int, Sequence] = {}
        self._num_added = 0

    @property
    def has_work(self) -> bool:
        """Say whether `schedule` may find something to do."""
        return bool(self.running or self.waiting or self.ready)

    @property
    def is_expecting(self) -> bool:
        """Say whether blocks will come free without a step: somebody fills, reads or stores some."""
        return bool(self.filling or self._orphans or self.leases)

    @property
    def num_waiting(self) -> int:
        """Sequences without a place in the batch."""
        return len(self.waiting) + len(self.filling) + len(self.ready)

    @property
    def prefill_tokens(self) -> int:
        """Tokens of waiting and half-computed sequences that are still to compute."""
        started = (*self.running, *self.ready)
        running = sum(sequence.num_remaining for sequence in started if sequence.num_remaining > 1)
        return running + self.waiting_tokens

    @property
    def waiting_tokens(self) -> int:
        """Tokens of waiting sequences, those that will be found in the cache included."""
        return sum(sequence.num_remaining for sequence in self.waiting if not sequence.request.only_fill)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits into the pool at its full length."""
        self._sequences[sequence.key] = sequence
        self._num_added += 1
        sequence.turn = self._num_added - LEAD * sequence.request.rank
        place = len(self.waiting)
        while place and self.waiting[place - 1].turn > sequence.turn:
            place -= 1
        self.waiting.insert(place, sequence)

    def abort(self, key: int) -> None:
        """Forget a sequence in any state; unknown keys are no error.

        Its blocks are released at once, while filling with the answer.
        """
        sequence = self._sequences.pop(key, None)
        if sequence is None:
            return
        if key in self.filling:
            self._orphans[key] = self.filling.pop(key)
            return
        self.pool.release(sequence.blocks)
        if not sequence.blocks:
            self.waiting.remove(sequence)
        elif sequence in self.ready:
            self.ready.remove(sequence)
        else:
            self.running.remove(sequence)

    def filled(self, key: int, num_blocks: int) -> None:
        """Take the first `num_blocks` blocks that a `Fill` named as computed; unknown keys are no error."""
        if (orphan := self._orphans.pop(key, None)) is not None:
            self.pool.release(orphan.blocks)
        if (sequence := self.filling.pop(key, None)) is None:
            return
        first, last = sequence.num_stored, min(sequence.num_stored + max(0, num_blocks), sequence.num_to_fill)
        hashes = sequence.hashes(last, self._block_size)
        self.pool.store(hashes[first - 1] if first else START, hashes[first:], sequence.blocks[first:last])
        sequence.num_stored = last
        sequence.num_computed = last * self._block_size
        sequence.cached_tokens = min(sequence.num_computed, sequence.num_prompt)
        sequence.num_to_fill = 0
        if sequence.request.only_fill:
            self._leave(sequence)
        else:
            self.ready.append(sequence)

    def release(self, key: int) -> None:
        """Hold the blocks of this sequence no longer, those that it will fill included; unknown keys are no error."""
        if (sequence := self._sequences.get(key)) is not None:
            sequence.is_held = False
        self.leases.release(key)

    def take_notes(self) -> list[Note]:
        """Return what is to be told since the last call, in order."""
        notes, self.leases.notes = self.leases.notes, []
        return notes

    def block_lists(self) -> Iterator[Items[int]]:
        """Yield the blocks of all who refer to some, for `BlockPool.check`."""
        for sequences in (self.running, self.ready, self.filling.values(), self._orphans.values()):
            for sequence in sequences:
                yield sequence.blocks
        yield from self.leases.block_lists()

    def schedule(self) -> Plan:
        """Decide the next step and take the blocks that it needs; empty lists mean that there is nothing to do.

        Blocks that the step fills become known at once: a later sequence of the same plan may share them, since a layer
        writes the keys and values of the whole step before it reads any.
        """
        while self.ready and len(self.running) < self._max_running:
            self.running.append(self.ready.popleft())
        decode, num_preempted = self._schedule_decode()
        decode.sort(key=lambda sequence: len(sequence.blocks), reverse=True)
        budget = self._max_batch_tokens - len(decode)
        prefill: list[Chunk] = []
        for sequence in self.running:
            if sequence.num_remaining > 1 and budget > 0:
                budget -= self._schedule_chunk(sequence, budget, prefill)
        while self.waiting and self._can_start(sequence := self.waiting[0], budget):
            if not self._admit(sequence) and not sequence.request.only_fill:
                break
            self.waiting.popleft()
            if sequence.num_to_fill:
                self._start_filling(sequence)
            elif sequence.request.only_fill:
                self.leases.notes.append(Fill(sequence.key, sequence.num_stored, [], []))
                self._leave(sequence)
            elif budget > 0 and len(self.running) < self._max_running:
                self.running.append(sequence)
                budget -= self._schedule_chunk(sequence, budget, prefill)
            else:
                self.ready.append(sequence)
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
            if chunk.sequence.is_held and not chunk.is_last:
                self._hold(chunk.sequence, is_last=False)
        ended: list[Outcome] = []
        for row, (sequence, token) in enumerate(zip(sampling, tokens, strict=True)):
            if row in broken:
                ended.append(Outcome(sequence, "abort"))
            elif reason := "stop" if sequence.is_embedding else sequence.append(token):
                if sequence.is_held:
                    self._hold(sequence, is_last=True)
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
                    self._preempt((self.ready or self.running).pop())
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

    def _can_start(self, sequence: Sequence, budget: int) -> bool:
        """Say whether there is a place: in the step, or among those that fill, of which there is a batch at most."""
        if sequence.request.fill_blocks:
            return len(self.filling) + len(self.ready) < self._max_running
        return budget > 0 and len(self.running) < self._max_running

    def _admit(self, sequence: Sequence) -> bool:
        """Give `sequence` blocks for all its tokens, if there are enough of them.

        At least the last token is computed even if all are cached: its logits are needed. One block per sequence that
        has some stays free, or the next decode steps would preempt what was just admitted. `num_to_fill` is set when
        blocks are to come from elsewhere, the first time only.
        """
        num_full = (len(sequence.tokens) - 1) // self._block_size
        hashes = [] if sequence.needs_whole_prompt else sequence.hashes(num_full, self._block_size)
        shared = self.pool.match_prefix(hashes)
        num_new = -(-len(sequence.tokens) // self._block_size) - len(shared)
        num_live = len(self.running) + len(self.ready) + len(self.filling)
        if num_new + self.pool.num_cached(shared) + num_live > self.pool.num_available:
            return False
        self.pool.share(shared)
        sequence.blocks.extend((*shared, *self.pool.allocate(num_new)))
        sequence.num_stored = len(shared)
        sequence.num_computed = len(shared) * self._block_size
        if not sequence.was_admitted:
            sequence.was_admitted = True
            fill_blocks = min(sequence.request.fill_blocks, len(hashes))
            sequence.num_to_fill = fill_blocks if fill_blocks > len(shared) else 0
            sequence.cached_tokens = min(sequence.num_computed, sequence.num_prompt)
        return True

    def _start_filling(self, sequence: Sequence) -> None:
        start, last = sequence.num_stored, sequence.num_to_fill
        self.filling[sequence.key] = sequence
        hashes = sequence.hashes(last, self._block_size)
        self.leases.notes.append(Fill(sequence.key, start, list(sequence.blocks[start:last]), hashes[start:]))

    def _leave(self, sequence: Sequence) -> None:
        """Forget a sequence that has nothing to compute; what it brought stays known."""
        del self._sequences[sequence.key]
        self.pool.release(sequence.blocks)

    def _hold(self, sequence: Sequence, *, is_last: bool) -> None:
        """Keep the full blocks that were computed since the last time, and tell; they are known by hash as well."""
        first, last = self.leases.num_held(sequence.key), sequence.num_computed // self._block_size
        if last > first or is_last:
            hashes = sequence.hashes(last, self._block_size)
            self.leases.hold(sequence.key, sequence.blocks[first:last], hashes[first:], is_last=is_last)

    def _preempt(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.forget_computed()
        sequence.turn = float("-inf")  # its turn has come already
        self.waiting.appendleft(sequence)

    def _store_full(self, sequence: Sequence, num_tokens: int) -> None:
        """Make known the blocks that are full once `num_tokens` tokens are computed."""
        first, last = sequence.num_stored, num_tokens // self._block_size
        if last > first:
            hashes = sequence.hashes(last, self._block_size)
            parent = hashes[first - 1] if first else START
            self.pool.store(parent, hashes[first:], sequence.blocks[first:last])
            sequence.num_stored = last
