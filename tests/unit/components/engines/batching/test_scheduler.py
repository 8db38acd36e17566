"""The scheduler and its pool, driven by an engine that computes nothing but checks what it is asked to compute."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.messages.base import unpack_u64
from bus.messages.inference import Sampling, Stopping
from bus.messages.kv import BlocksRemoved, BlocksStored
from components.engines import EngineRequest
from components.engines.batching.pool import BlockPool
from components.engines.batching.scheduler import LEAD, Outcome, Plan, Scheduler
from components.engines.batching.sequence import Sequence
from components.engines.exchange import Fill, Held
from kv_events.hashing import block_hashes, salt_hash

BLOCK_SIZE = 4
MAX_MODEL_LEN = 64


class Dry:
    """Runs steps without a model. Knows for every slot of the pool which context its content was computed from."""

    def __init__(self, *, num_blocks: int = 16, max_running: int = 4, max_batch_tokens: int = 16) -> None:
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            self.pool, block_size=BLOCK_SIZE, max_running=max_running, max_batch_tokens=max_batch_tokens
        )
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.ended: list[Outcome] = []
        self.preemptions = 0
        self.known: set[int] = set()
        self.fills: dict[int, Fill] = {}
        self.held: dict[int, list[int]] = {}
        self.pinned: dict[int, list[int]] = {}

    def add(
        self,
        key: int,
        prompt: list[int],
        max_tokens: int = 4,
        *,
        salt: str = "",
        output: tuple[int, ...] = (),
        fill_blocks: int = 0,
        only_fill: bool = False,
        hold: bool = False,
        priority: int = 0,
    ) -> Sequence:
        request = EngineRequest(
            key,
            prompt,
            list(output),
            Sampling(),
            Stopping(max_tokens=max_tokens),
            frozenset([0]),
            cache_salt=salt,
            fill_blocks=fill_blocks,
            only_fill=only_fill,
            hold=hold,
            rank=priority,
        )
        sequence = Sequence(request, model="m", max_model_len=min(MAX_MODEL_LEN, self.pool.num_blocks * BLOCK_SIZE))
        self.scheduler.add(sequence)
        self.tokens[key] = sequence.tokens
        return sequence

    def fill(self, key: int, num_blocks: int) -> None:
        """Write the first blocks that a fill asked for, and rubbish into the others."""
        fill = self.fills.pop(key)
        for index, block in enumerate(fill.blocks):
            for offset in range(BLOCK_SIZE):
                end = (fill.start + index) * BLOCK_SIZE + offset + 1
                self.slots[block, offset] = tuple(self.tokens[key][:end]) if index < num_blocks else ()
        self.scheduler.filled(key, num_blocks)

    def hear(self) -> None:
        for note in self.scheduler.take_notes():
            if isinstance(note, Fill):
                self.fills[note.key] = note
            elif isinstance(note, Held):
                held = self.held.setdefault(note.key, [])
                assert note.start == len(held)
                held += note.blocks
            else:
                self.pinned[note.token] = note.blocks

    def step(self, token: int = 5, broken: frozenset[int] = frozenset()) -> Plan:
        plan = self.scheduler.schedule()
        self.hear()
        self.preemptions += plan.num_preempted
        work = [(sequence, sequence.num_computed, 1) for sequence in plan.decode]
        work += [(chunk.sequence, chunk.start, chunk.count) for chunk in plan.prefill]
        assert sum(count for _, _, count in work) <= self.max_batch_tokens
        assert len(self.scheduler.running) <= self.max_running
        assert len({sequence.key for sequence, _, _ in work}) == len(work)
        for sequence, start, count in work:  # all is written before anything is read, as in a layer
            assert start == sequence.num_computed
            for position in range(start, start + count):
                slot = (sequence.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE)
                self.slots[slot] = tuple(sequence.tokens[: position + 1])
        for sequence, start, count in work:
            for position in range(start + count):
                slot = (sequence.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE)
                assert self.slots[slot] == tuple(sequence.tokens[: position + 1]), "a block holds another context"
        outcomes = self.scheduler.finish(plan, [token] * len(plan.sampling), broken)
        for outcome in outcomes:
            if outcome.reason == "abort":
                self.pool.discard(outcome.sequence.blocks)
        self.ended += outcomes
        self.hear()
        self.check()
        return plan

    def check(self) -> None:
        self.pool.check(self.scheduler.block_lists())
        assert not any(sequence.blocks for sequence in self.scheduler.waiting)
        for event in self.pool.take_events():
            hashes = set(unpack_u64(event.block_hashes)) if not isinstance(event, type(None)) else set()
            if isinstance(event, BlocksStored):
                assert not hashes & self.known, "stored twice"
                self.known |= hashes
            else:
                assert isinstance(event, BlocksRemoved)
                assert hashes <= self.known, "removed what was not there"
                self.known -= hashes
        assert self.known == self.pool.known_hashes()

    def run(self) -> None:
        for _ in range(2000):
            if not self.scheduler.has_work:
                return
            assert not self.step().is_empty or self.scheduler.is_expecting
        raise AssertionError("it never ends")


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks() -> None:
    dry = Dry(max_batch_tokens=8)
    dry.add(1, list(range(100, 120)), max_tokens=2)
    chunks = [[(chunk.start, chunk.count) for chunk in dry.step().prefill] for _ in range(3)]
    assert chunks == [[(0, 8)], [(8, 8)], [(16, 4)]]
    assert [len(dry.step().decode), len(dry.step().decode)] == [1, 0]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled() -> None:
    dry = Dry(max_batch_tokens=8)
    dry.add(1, [1, 2, 3], max_tokens=10)
    dry.step()
    dry.add(2, list(range(100, 120)))
    plan = dry.step()
    assert [sequence.key for sequence in plan.decode] == [1]
    assert [(chunk.sequence.key, chunk.count) for chunk in plan.prefill] == [(2, 7)]


def test_equal_prompts_share_blocks_even_within_one_step_and_compute_the_last_token() -> None:
    dry = Dry(max_batch_tokens=32)
    prompt = list(range(100, 112))
    first, second = dry.add(1, prompt), dry.add(2, prompt)
    plan = dry.step()
    assert [(chunk.start, chunk.count) for chunk in plan.prefill] == [(0, 12), (8, 4)]
    assert first.blocks[:2] == second.blocks[:2]
    assert (first.cached_tokens, second.cached_tokens) == (0, 8)


def test_another_salt_shares_nothing() -> None:
    dry = Dry(max_batch_tokens=32)
    dry.add(1, list(range(100, 112)), salt="a")
    other = dry.add(2, list(range(100, 112)), salt="b")
    dry.step()
    assert other.cached_tokens == 0


def test_a_finished_conversation_is_found_by_its_next_turn() -> None:
    dry = Dry(max_batch_tokens=32)
    dry.add(1, list(range(100, 106)), max_tokens=4)
    dry.run()
    turn = dry.add(2, [*range(100, 106), 5, 5, 5, 5, 200])
    dry.step()
    assert turn.cached_tokens == 8
    assert dry.known >= set(block_hashes([*range(100, 106), 5, 5], BLOCK_SIZE, salt_hash("m")))


def test_the_latest_sequence_is_preempted_and_ends_with_all_its_tokens() -> None:
    dry = Dry(num_blocks=5, max_batch_tokens=32)
    dry.add(1, list(range(100, 108)), max_tokens=10)
    dry.add(2, list(range(200, 204)), max_tokens=10)
    dry.run()
    assert dry.preemptions > 0
    assert [(outcome.sequence.key, outcome.sequence.num_output) for outcome in dry.ended] == [(1, 10), (2, 10)]


def test_nothing_is_admitted_that_the_next_steps_would_preempt() -> None:
    dry = Dry(num_blocks=6, max_batch_tokens=32)
    dry.add(1, list(range(100, 108)), max_tokens=4)
    dry.step()
    dry.add(2, list(range(200, 210)), max_tokens=1)
    dry.step()
    assert [sequence.key for sequence in dry.scheduler.waiting] == [2]
    dry.run()
    assert dry.preemptions == 0


def test_a_lone_sequence_fills_the_whole_pool() -> None:
    dry = Dry(num_blocks=3)
    sequence = dry.add(1, [1, 2, 3], max_tokens=1000)
    dry.run()
    assert len(sequence.tokens) == 12
    assert dry.preemptions == 0
    assert dry.ended == [Outcome(sequence, "length")]


def test_first_come_first_served() -> None:
    dry = Dry(max_running=1, max_batch_tokens=8)
    for key in range(3):
        dry.add(key, [key + 1] * 6, max_tokens=1)
    dry.run()
    assert [outcome.sequence.key for outcome in dry.ended] == [0, 1, 2]


def test_higher_priorities_start_first_and_equal_ones_in_order() -> None:
    dry = Dry(max_running=1, max_batch_tokens=8)
    for key, priority in enumerate([0, 0, -1, 0, 100, 1, 100]):
        dry.add(key, [key + 1] * 6, max_tokens=1, priority=priority)
    dry.run()
    assert [outcome.sequence.key for outcome in dry.ended] == [4, 6, 5, 0, 1, 3, 2]


def test_a_stream_of_higher_priorities_starves_nobody() -> None:
    dry = Dry(max_running=1, max_batch_tokens=8)
    dry.add(0, [1] * 6, max_tokens=1)
    dry.step()
    dry.add(1, [1] * 6, max_tokens=1, priority=-1)
    for key in range(2, 6 * LEAD):
        dry.add(key, [1] * 6, max_tokens=1, priority=2)
        dry.step()
    assert [outcome.sequence.key for outcome in dry.ended].index(1) == 3 * LEAD


def test_what_was_preempted_goes_on_before_those_that_never_began() -> None:
    dry = Dry(num_blocks=5, max_batch_tokens=32)
    dry.add(1, list(range(100, 108)), max_tokens=10)
    dry.add(2, list(range(200, 204)), max_tokens=10)
    while not dry.preemptions:
        dry.step()
    dry.add(3, [1, 2, 3], max_tokens=10, priority=100)
    dry.run()
    assert [outcome.sequence.key for outcome in dry.ended] == [1, 2, 3]


def test_a_stop_token_ends_a_sequence_and_counts() -> None:
    dry = Dry()
    sequence = dry.add(1, [1, 2, 3])
    dry.step(token=0)
    assert dry.ended == [Outcome(sequence, "stop")]
    assert (sequence.num_output, sequence.tokens[-1]) == (1, 0)


def test_a_broken_sequence_leaves_nothing_in_the_cache() -> None:
    dry = Dry(max_batch_tokens=32)
    dry.add(1, list(range(100, 109)))
    dry.add(2, list(range(200, 209)))
    dry.step(broken=frozenset([0]))
    assert [outcome.reason for outcome in dry.ended] == ["abort"]
    assert dry.known == set(block_hashes(list(range(200, 208)), BLOCK_SIZE, salt_hash("m")))


@pytest.mark.parametrize("num_steps", range(6))
def test_aborting_in_any_state_frees_every_block(num_steps: int) -> None:
    dry = Dry(num_blocks=8, max_batch_tokens=8, max_running=2)
    for key in range(3):  # after some steps: one decodes, one is half prefilled, one waits
        dry.add(key, list(range(key * 100, key * 100 + 14)))
    for _ in range(num_steps):
        dry.step()
    for key in (2, 1, 0, 0, 77):
        dry.scheduler.abort(key)
        dry.check()
    assert dry.pool.num_available == 8
    assert not dry.scheduler.running
    assert not dry.scheduler.waiting
    assert dry.scheduler.prefill_tokens == 0


def test_a_step_must_hold_a_token_of_every_running_sequence() -> None:
    with pytest.raises(ValueError, match="every running sequence"):
        Dry(max_running=5, max_batch_tokens=4)


def test_a_sequence_that_is_filled_holds_no_place_and_computes_the_rest() -> None:
    dry = Dry(max_running=1, max_batch_tokens=32)
    prompt = list(range(100, 118))
    sequence = dry.add(1, prompt, fill_blocks=4)
    dry.add(2, [7, 8, 9], max_tokens=3)
    assert [chunk.sequence.key for chunk in dry.step().prefill] == [2]
    fill = dry.fills[1]
    assert (fill.start, fill.hashes) == (0, block_hashes(prompt, BLOCK_SIZE, salt_hash("m")))
    assert fill.blocks == list(sequence.blocks[:4])
    dry.fill(1, 4)
    assert [each.key for each in dry.step().decode] == [2], "the batch is full"
    dry.check()
    dry.step()
    assert [(chunk.start, chunk.count) for chunk in dry.step().prefill] == [(16, 2)]
    assert sequence.cached_tokens == 16
    dry.run()
    assert dry.known >= set(fill.hashes)


def test_only_blocks_that_are_missing_are_filled_and_none_beyond_the_last_token() -> None:
    dry = Dry(max_batch_tokens=64, num_blocks=32)
    prompt = list(range(100, 116))
    dry.add(1, prompt[:9])
    dry.run()
    sequence = dry.add(2, prompt, fill_blocks=99)
    dry.step()
    assert (dry.fills[2].start, len(dry.fills[2].blocks)) == (2, 1)
    dry.fill(2, 1)
    assert [(chunk.start, chunk.count) for chunk in dry.step().prefill] == [(12, 4)]
    dry.run()
    dry.add(3, prompt, fill_blocks=3)
    assert dry.step().prefill[0].start == 12
    assert 3 not in dry.fills, "all is here"
    assert sequence.cached_tokens == 12


@pytest.mark.parametrize("num_blocks", range(5))
def test_a_partial_fill_leaves_the_rest_to_compute(num_blocks: int) -> None:
    dry = Dry(max_batch_tokens=32)
    dry.add(1, list(range(100, 117)), fill_blocks=4)
    dry.step()
    dry.fill(1, num_blocks)
    plan = dry.step()
    start = num_blocks * BLOCK_SIZE
    assert [(chunk.start, chunk.count) for chunk in plan.prefill] == ([(start, 17 - start)] if num_blocks < 4 else [])
    assert len(plan.decode) == (num_blocks == 4)
    dry.run()
    assert dry.pool.num_available == 16


def test_an_abort_while_filling_keeps_the_blocks_until_the_answer() -> None:
    dry = Dry()
    dry.add(1, list(range(100, 117)), fill_blocks=4)
    dry.step()
    dry.scheduler.abort(1)
    dry.check()
    assert dry.pool.num_available == 11
    assert dry.scheduler.is_expecting
    dry.fill(1, 4)
    dry.scheduler.filled(1, 4)
    dry.check()
    assert dry.pool.num_available == 16
    assert not dry.known, "nobody looked whether it is right"
    assert not dry.scheduler.is_expecting


def test_a_filled_sequence_gives_way_to_those_that_decode_and_is_not_filled_again() -> None:
    dry = Dry(num_blocks=7, max_running=1, max_batch_tokens=32)
    dry.add(1, list(range(100, 107)), max_tokens=14)
    dry.add(2, list(range(200, 213)), fill_blocks=3, max_tokens=2)
    dry.step()
    dry.fill(2, 3)
    dry.run()
    assert dry.preemptions == 1
    assert not dry.fills
    assert [(outcome.sequence.key, outcome.sequence.num_output) for outcome in dry.ended] == [(1, 14), (2, 2)]


def test_who_only_fills_computes_nothing_and_leaves_what_came_to_others() -> None:
    dry = Dry(max_batch_tokens=32)
    prompt = list(range(100, 120))
    dry.add(1, prompt[:17], only_fill=True, fill_blocks=4)
    assert dry.step().is_empty
    assert dry.scheduler.prefill_tokens == 0
    dry.fill(1, 3)
    assert dry.step().is_empty
    assert not dry.scheduler.has_work
    assert dry.pool.num_available == 16
    sequence = dry.add(2, prompt)
    assert [(chunk.start, chunk.count) for chunk in dry.step().prefill] == [(12, 8)]
    assert sequence.cached_tokens == 12
    dry.run()
    assert [outcome.sequence.key for outcome in dry.ended] == [2]


@pytest.mark.parametrize("num_blocks", [4, 16])
def test_who_only_fills_is_told_at_once_when_all_is_here_or_has_no_room(num_blocks: int) -> None:
    dry = Dry(num_blocks=num_blocks, max_batch_tokens=32)
    dry.add(1, list(range(100, 113)), max_tokens=2)
    dry.step()
    dry.add(2, list(range(100, 113)) if num_blocks == 16 else list(range(200, 213)), only_fill=True, fill_blocks=3)
    dry.add(3, [1, 2, 3], max_tokens=1)
    dry.step()
    assert not dry.fills[2].blocks
    dry.run()
    assert {outcome.sequence.key for outcome in dry.ended} == {1, 3}
    assert dry.pool.num_available == num_blocks
    dry.scheduler.abort(2)
    dry.scheduler.filled(2, 3)


def test_held_blocks_stay_until_their_release_and_are_told_as_chunks_end() -> None:
    dry = Dry(max_batch_tokens=8, num_blocks=8)
    sequence = dry.add(1, list(range(100, 118)), max_tokens=1, hold=True)
    dry.step()
    assert dry.held[1] == list(sequence.blocks[:2])
    dry.step()
    dry.step()
    assert dry.held[1] == list(sequence.blocks[:4]), "not the one that is not full"
    assert dry.pool.num_available == 4
    dry.add(2, list(range(200, 220)), max_tokens=1)
    assert dry.step().is_empty
    assert dry.scheduler.is_expecting
    dry.scheduler.release(1)
    dry.run()
    assert [outcome.sequence.key for outcome in dry.ended] == [1, 2]


def test_what_was_told_as_held_outlives_an_abort_but_not_a_release_before_the_end() -> None:
    dry = Dry(max_batch_tokens=8, num_blocks=8)
    dry.add(1, list(range(100, 118)), hold=True)
    dry.step()
    dry.scheduler.abort(1)
    dry.check()
    assert dry.pool.num_available == 6
    dry.scheduler.release(1)
    dry.add(2, list(range(200, 218)), hold=True)
    dry.step()
    dry.scheduler.release(2)
    dry.run()
    assert dry.pool.num_available == 8


def test_pinned_blocks_are_the_known_beginning_and_are_not_evicted() -> None:
    dry = Dry(num_blocks=4, max_batch_tokens=32)
    dry.add(1, list(range(100, 109)), max_tokens=1)
    dry.run()
    hashes = block_hashes(list(range(100, 108)), BLOCK_SIZE, salt_hash("m"))
    for token, asked in ((1, [*hashes, 77]), (2, hashes[1:]), (3, [77])):
        dry.scheduler.leases.pin(token, asked)
    dry.hear()
    assert dry.pinned == {1: dry.pool.match_prefix(hashes), 2: dry.pool.match_prefix(hashes[1:]), 3: []}
    dry.add(2, list(range(200, 208)), max_tokens=1)
    dry.run()
    assert dry.known >= set(hashes)
    for token in (1, 2, 3, 3, 77):
        dry.scheduler.leases.unpin(token)
    dry.check()
    assert dry.pool.num_available == 4


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Additions (prompt family and length), aborts, steps, answers to fills, releases, pins."""
    actions = st.sampled_from(["add", "step", "step", "abort", "fill", "release", "pin"])
    return draw(st.lists(st.tuples(actions, st.integers(0, 30), st.integers(1, 8)), min_size=5, max_size=40))


@given(histories(), st.integers(4, 12), st.integers(1, 5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_history_breaks_the_books(history: list[tuple[str, int, int]], num_blocks: int, max_running: int) -> None:
    dry = Dry(num_blocks=num_blocks, max_running=max_running, max_batch_tokens=9)
    room = min(MAX_MODEL_LEN, num_blocks * BLOCK_SIZE)
    added = aborted = 0
    silent: set[int] = set()
    for action, number, size in history:
        if action == "add":
            prompt = [number % 3 + 1] * (1 + number % 3 * 5) + [number] * size
            output = (9,) * (number % 2)
            if len(prompt) + len(output) < room:
                hold = number % 4 == 0
                fill_blocks, priority = number % 5, number % 7 - 3
                only_fill = number % 8 == 3
                options = {"fill_blocks": fill_blocks, "hold": hold and not only_fill, "only_fill": only_fill}
                dry.add(added, prompt, size + 1, output=output, priority=priority, **options)
                silent |= {added} if only_fill else set()
                added += 1
        elif action == "fill":
            if dry.fills:
                dry.fill(sorted(dry.fills)[number % len(dry.fills)], size // 2)
                dry.check()
        elif action == "release":
            dry.scheduler.release(number)
            dry.scheduler.leases.unpin(number % 3)
            dry.check()
        elif action == "pin":
            if dry.tokens:
                tokens = dry.tokens[number % len(dry.tokens)]
                dry.scheduler.leases.pin(number % 3, block_hashes(tokens, BLOCK_SIZE, salt_hash("m")))
        elif action == "abort" and added:
            scheduler = dry.scheduler
            live = {*scheduler.running, *scheduler.waiting, *scheduler.ready, *scheduler.filling.values()}
            aborted += number % added in {sequence.key for sequence in live} - silent
            dry.scheduler.abort(number % added)
            dry.check()
        else:
            dry.step()
    for number in range(max(3, added)):
        dry.scheduler.release(number)
        dry.scheduler.leases.unpin(number)
    while dry.scheduler.has_work or dry.fills:
        dry.step()
        for key in list(dry.fills):
            dry.fill(key, 1)
    dry.check()
    assert not dry.scheduler.is_expecting
    assert len(dry.ended) + aborted + len(silent) == added
    assert dry.pool.num_available == num_blocks
