"""The mock engine under a clock of its own: exact text, exact times, blocks that balance."""

import asyncio
import selectors
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bus.config import Config, MockConfig
from bus.errors import BadConfig, PromptTooLong
from bus.messages.base import unpack_u64
from bus.messages.inference import Sampling, Stopping
from bus.messages.kv import BlocksRemoved, BlocksStored
from components.engines import Ended, EngineRequest, Step
from components.engines.exchange import Fill, Held, Note, ignore_note
from components.engines.mock import load_engine
from components.engines.mock.engine import MockEngine
from components.engines.mock.oracle import mock_token, prompt_seed
from kv_events.hashing import block_hashes, salt_hash

VOCAB = 2048
SMALL = MockConfig(num_blocks=32, block_size=4, max_running=4, max_batch_tokens=16, max_model_len=64)


class _SkippingSelector(selectors.DefaultSelector):
    """Instead of waiting for the time to pass, lets it have passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


class Recorder:
    """Runs an engine until `num_ended` sequences ended, and keeps what it told."""

    def __init__(self, engine: MockEngine) -> None:
        self.engine = engine
        self.rows: dict[int, list[int]] = defaultdict(list)
        self.ended: dict[int, Ended] = {}
        self.ended_at: dict[int, float] = {}
        self.steps: list[Step] = []
        self.events: list[Any] = []
        self.after_step: Callable[[Step], None] = lambda _: None
        self.on_note: Callable[[Note], None] = ignore_note

    def run(self, num_ended: int) -> None:
        async def main() -> None:
            done = anyio.Event()

            def on_step(step: Step) -> None:
                self.steps.append(step)
                self.events += self.engine.take_events()
                for key, token in zip(step.keys, step.tokens, strict=True):
                    self.rows[key].append(token)
                for ended in step.ended:
                    self.ended[ended.key] = ended
                    self.ended_at[ended.key] = anyio.current_time()
                self.after_step(step)
                if len(self.ended) >= num_ended:
                    done.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.engine.run, on_step, self.on_note)
                await done.wait()
                tasks.cancel_scope.cancel()

        anyio.run(main, backend_options={"loop_factory": VirtualLoop})


def make(config: MockConfig = SMALL, **changes: Any) -> MockEngine:
    return MockEngine(msgspec.structs.replace(config, **changes), model="m", vocab_size=VOCAB)


def request(key: int, prompt: list[int], output: list[int] | None = None, **stopping: Any) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt=prompt,
        output=output or [],
        sampling=Sampling(),
        stopping=Stopping(**{"max_tokens": 8, **stopping}),
        eos_token_ids=frozenset({1}),
    )


def text_of(prompt: list[int], count: int, first: int = 0) -> list[int]:
    return [mock_token(prompt_seed(prompt), offset, VOCAB) for offset in range(first, first + count)]


def test_sequences_get_the_text_of_the_oracle_in_any_company() -> None:
    recorder = Recorder(make())
    prompts = {key: list(range(key, key + 3 * key)) for key in range(1, 10)}
    for key, prompt in prompts.items():
        recorder.engine.submit(request(key, prompt))
    recorder.run(9)
    for key, prompt in prompts.items():
        assert recorder.rows[key] == text_of(prompt, 8)
        assert (recorder.ended[key].reason, recorder.ended[key].num_tokens) == ("length", 8)
    assert max(len(step.keys) for step in recorder.steps) == SMALL.max_running
    assert recorder.engine.load().free_blocks == SMALL.num_blocks


def test_a_moved_sequence_goes_on_as_it_would_have_gone_on() -> None:
    prompt = [7, 8, 9]
    recorder = Recorder(make())
    recorder.engine.submit(request(1, prompt, text_of(prompt, 5)))
    recorder.run(1)
    assert recorder.rows[1] == text_of(prompt, 3, first=5)
    assert recorder.ended[1].num_tokens == 8


def test_a_stop_token_ends_a_sequence_and_is_its_last_token() -> None:
    text = text_of([5], 8)
    recorder = Recorder(make())
    recorder.engine.submit(request(1, [5], stop_token_ids=[text[3]]))
    recorder.engine.submit(request(2, [5], stop_token_ids=[text[3]], min_tokens=6))
    recorder.run(2)
    assert recorder.rows[1] == text[:4]
    assert recorder.ended[1].reason == "stop"
    assert len(recorder.rows[2]) == 8
    assert text[3] not in recorder.rows[2]


def test_steps_take_what_the_model_says() -> None:
    engine = make(step_base_s=0.010, prefill_token_s=0.001, decode_sequence_s=0.002, kv_token_s=0.0005)
    recorder = Recorder(engine)
    engine.submit(request(1, [1, 2, 3], max_tokens=3))
    recorder.run(1)
    expected = [0.010 + 3 * 0.001, 0.012 + 3 * 0.0005, 0.012 + 4 * 0.0005]
    assert [step.stats.duration_s for step in recorder.steps] == pytest.approx(expected)
    assert recorder.ended_at[1] == pytest.approx(sum(expected))


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding() -> None:
    recorder = Recorder(make())
    recorder.engine.submit(request(1, [1, 2]))
    recorder.engine.submit(request(2, list(range(40)), max_tokens=2))
    recorder.run(2)
    assert [step.stats.prefill_tokens for step in recorder.steps[:4]] == [16, 15, 11, 0]
    assert [len(step.keys) for step in recorder.steps[:4]] == [1, 1, 2, 2]


def test_a_prompt_seen_before_is_cached_and_its_blocks_are_told() -> None:
    prompt = list(range(100, 110))
    recorder = Recorder(make())
    recorder.engine.submit(request(1, prompt, max_tokens=1))
    recorder.after_step = lambda step: (
        step.ended
        and 1 in recorder.ended
        and len(recorder.ended) == 1
        and (recorder.engine.submit(request(2, prompt, max_tokens=1)))
    )
    recorder.run(2)
    assert (recorder.ended[1].cached_tokens, recorder.ended[2].cached_tokens) == (0, 8)
    assert [pair for step in recorder.steps for pair in step.cached] == [(2, 8)]
    stored = [event for event in recorder.events if isinstance(event, BlocksStored)]
    assert [list(unpack_u64(event.block_hashes)) for event in stored] == [block_hashes(prompt, 4, salt_hash("m"))]


def test_a_full_pool_evicts_preempts_and_loses_no_token() -> None:
    engine = make(num_blocks=10)
    recorder = Recorder(engine)
    prompts = {key: [key * 10 + index for index in range(9)] for key in range(1, 7)}
    for key, prompt in prompts.items():
        engine.submit(request(key, prompt, max_tokens=20))
    recorder.run(6)
    for key, prompt in prompts.items():
        assert recorder.rows[key] == text_of(prompt, 20)
    assert sum(step.stats.preemptions for step in recorder.steps) > 0
    assert any(isinstance(event, BlocksRemoved) for event in recorder.events)
    assert engine.load().free_blocks == 10


def test_nothing_more_is_told_of_an_aborted_sequence() -> None:
    engine = make(step_base_s=0.01)
    recorder = Recorder(engine)
    for key in (1, 2, 3):
        engine.submit(request(key, [key], max_tokens=30))

    def abort_inside_a_step(step: Step) -> None:
        if len(recorder.steps) == 3:
            asyncio.get_running_loop().call_later(0.005, engine.abort, 1)

    recorder.after_step = abort_inside_a_step
    engine.abort(2)
    engine.abort(99)
    recorder.run(1)
    assert (len(recorder.rows[1]), len(recorder.rows[2]), len(recorder.rows[3])) == (3, 0, 30)
    assert engine.load().free_blocks == SMALL.num_blocks


def test_what_can_never_fit_is_refused() -> None:
    engine = make(num_blocks=4)
    with pytest.raises(PromptTooLong):
        engine.submit(request(1, [1] * 64))
    with pytest.raises(PromptTooLong):
        engine.submit(request(1, [1] * 10, max_tokens=7))
    engine.submit(request(1, [1] * 10, max_tokens=6))
    assert engine.load().waiting == 1
    assert engine.load().prefill_tokens == 10


def test_the_context_ends_a_sequence() -> None:
    recorder = Recorder(make(max_model_len=16))
    recorder.engine.submit(request(1, [1] * 10, max_tokens=1000))
    recorder.run(1)
    assert (len(recorder.rows[1]), recorder.ended[1].reason) == (6, "length")


def test_impossible_settings_are_named() -> None:
    with pytest.raises(BadConfig, match="max_batch_tokens"):
        make(max_batch_tokens=2)


def test_the_vocabulary_is_that_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 777, "hidden_size": 1}')
    assert load_engine(Config(), tmp_path, model="m").spec.vocab_size == 777


@pytest.mark.parametrize("spoiled", [None, 0, 4])
def test_filled_blocks_are_looked_at(spoiled: int | None) -> None:
    prompt = list(range(30))
    prefill, decode = Recorder(make()), Recorder(make())
    places: dict[int, int] = {}

    def on_held(note: Note) -> None:
        assert isinstance(note, Held)
        places.update(zip(note.hashes, note.blocks, strict=True))

    def on_fill(note: Note) -> None:
        assert isinstance(note, Fill)
        for index, (block, block_hash) in enumerate(zip(note.blocks, note.hashes, strict=True)):
            source = prefill.engine.memory.row(places[block_hash])
            decode.engine.memory.row(block)[:] = bytes(len(source)) if index == spoiled else source
        decode.engine.filled(note.key, len(note.blocks))

    prefill.on_note, decode.on_note = on_held, on_fill
    prefill.engine.submit(msgspec.structs.replace(request(0, prompt, max_tokens=1), hold=True))
    prefill.run(1)
    assert len(places) == 7
    decode.engine.submit(msgspec.structs.replace(request(0, prompt, max_tokens=6), fill_blocks=7))
    decode.run(1)
    assert (decode.rows[0] == text_of(prompt, 6)) == (spoiled is None)
    assert sum(step.stats.prefill_tokens for step in decode.steps) == 2
    assert prefill.engine.load().free_blocks == 25
    prefill.engine.release(0)
    assert prefill.engine.load().free_blocks == 32


def test_a_fill_that_is_answered_at_once_leaves_others_waiting_for_their_blocks() -> None:
    recorder = Recorder(make(num_blocks=12))

    def on_fill(note: Note) -> None:
        assert isinstance(note, Fill)
        recorder.engine.filled(note.key, 0)

    recorder.on_note = on_fill
    for key in (1, 2):
        prompt = [key * 100 + index for index in range(30)]
        recorder.engine.submit(msgspec.structs.replace(request(key, prompt, max_tokens=2), fill_blocks=7))
    recorder.run(2)
    assert set(recorder.ended) == {1, 2}
