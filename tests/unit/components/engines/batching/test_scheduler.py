"""The scheduler and its pool, driven by an engine that computes nothing but checks what it is asked to compute."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.messages.base import unpack_u64
from bus.messages.inference import Sampling, Stopping
from bus.messages.kv import BlocksRemoved, BlocksStored
from components.engines import EngineRequest
from components.engines.batching.pool import BlockPool
from components.engines.batching.scheduler import Outcome, Plan, Scheduler
from components.engines.batching.sequence import Sequence
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
        self.ended: list[Outcome] = []
        self.preemptions = 0
        self.known: set[int] = set()

    def add(
        self, key: int, prompt: list[int], max_tokens: int = 4, *, salt: str = "", output: tuple[int, ...] = ()
    ) -> Sequence:
        request = EngineRequest(
            key, prompt, list(output), Sampling(), Stopping(max_tokens=max_tokens), frozenset([0]), cache_salt=salt
        )
        sequence = Sequence(request, model="m", max_model_len=min(MAX_MODEL_LEN, self.pool.num_blocks * BLOCK_SIZE))
        self.scheduler.add(sequence)
        return sequence

    def step(self, token: int = 5, broken: frozenset[int] = frozenset()) -> Plan:
        plan = self.scheduler.schedule()
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
        self.check()
        return plan

    def check(self) -> None:
        self.pool.check([sequence.blocks for sequence in self.scheduler.running])
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
            if not (self.scheduler.running or self.scheduler.waiting):
                return
            self.step()
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


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Additions (prompt family and length), aborts, steps."""
    actions = st.sampled_from(["add", "step", "step", "abort"])
    return draw(st.lists(st.tuples(actions, st.integers(0, 30), st.integers(1, 8)), min_size=5, max_size=40))


@given(histories(), st.integers(4, 12), st.integers(1, 5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_history_breaks_the_books(history: list[tuple[str, int, int]], num_blocks: int, max_running: int) -> None:
    dry = Dry(num_blocks=num_blocks, max_running=max_running, max_batch_tokens=9)
    room = min(MAX_MODEL_LEN, num_blocks * BLOCK_SIZE)
    added = aborted = 0
    for action, number, size in history:
        if action == "add":
            prompt = [number % 3 + 1] * (1 + number % 3 * 5) + [number] * size
            output = (9,) * (number % 2)
            if len(prompt) + len(output) < room:
                dry.add(added, prompt, max_tokens=size + 1, output=output)
                added += 1
        elif action == "abort" and added:
            live = {*dry.scheduler.running, *dry.scheduler.waiting}
            aborted += number % added in {sequence.key for sequence in live}
            dry.scheduler.abort(number % added)
            dry.check()
        else:
            dry.step()
    dry.run()
    assert len(dry.ended) + aborted == added
    assert dry.pool.num_available == num_blocks
