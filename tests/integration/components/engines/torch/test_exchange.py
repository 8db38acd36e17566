"""Blocks that another engine computed: the tokens are those of an engine that computed all by itself."""

from typing import Any

import anyio
import pytest

from bus.errors import EngineDied
from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest, Step
from components.engines.exchange import Fill, Held, Note, Pinned
from components.engines.torch.driver import TorchDriver
from components.engines.torch.engine import TorchEngine

SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "seeded": Sampling(temperature=1.0, top_p=0.9, seed=77),
    "logprobs and penalties": Sampling(temperature=0.0, top_logprobs=3, frequency_penalty=0.7),
}


def move(prefill: TorchEngine, decode: TorchEngine, held: list[Note], fill: Fill, num_blocks: int) -> None:
    """Copy the first blocks that `fill` asks for from where they are held."""
    places = {
        block_hash: block
        for note in held
        if isinstance(note, Held)
        for block_hash, block in zip(note.hashes, note.blocks, strict=True)
    }
    for block, block_hash in list(zip(fill.blocks, fill.hashes, strict=True))[:num_blocks]:
        decode.memory.row(block)[:] = prefill.memory.row(places[block_hash])


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("missing", [0, 2, 99], ids=["all", "all but two", "none"])
def test_tokens_are_equal_however_much_was_filled(
    load: Any, drive: Any, prompts: Any, sampling: Sampling, missing: int
) -> None:
    alone, prefill, decode = drive(load()), drive(load()), drive(load())
    assert prefill.engine.memory.fingerprint == decode.engine.memory.fingerprint
    computed = 0
    for key, prompt in enumerate(prompts):
        alone.add(key, prompt, sampling)
        alone.run()
        prefill.add(key, prompt, sampling, 1, hold=True)
        while prefill.engine.has_work:
            prefill.step()
        held = prefill.engine.take_notes()
        first = prefill.tokens[key]
        assert first == alone.tokens[key][:1]
        decode.add(key, prompt, sampling, output=list(first), fill_blocks=len(prompt) // 4)
        plan = decode.engine.schedule()
        for fill in decode.engine.take_notes():
            assert plan.is_empty
            assert not decode.engine.can_compute(plan)
            num_blocks = max(0, len(fill.blocks) - missing)
            move(prefill.engine, decode.engine, held, fill, num_blocks)
            decode.engine.scheduler.filled(key, num_blocks)
            computed = len(prompt) + 1 - (fill.start + num_blocks) * 4
            assert decode.engine.load().prefill_tokens == (computed if computed > 1 else 0)
            plan = decode.engine.schedule()
        prefill.engine.scheduler.release(key)
        decode.take(decode.engine.compute(plan))
        decode.run()
        assert first + decode.tokens[key] == alone.tokens[key]
        assert [each.top_ids for each in decode.logprobs.get(key, [])] == [
            each.top_ids for each in alone.logprobs.get(key, [])[1:]
        ]
    assert computed == (1 if missing == 0 else 9 if missing == 2 else len(prompts[-1]) + 1)
    assert prefill.engine.pool.num_available == prefill.engine.spec.num_blocks


def test_wrong_bytes_give_other_tokens(load: Any, drive: Any, prompts: Any) -> None:
    """Else the test above would prove nothing."""
    alone, decode = drive(load()), drive(load())
    alone.add(0, prompts[-1], SAMPLINGS["greedy"])
    decode.add(0, prompts[-1], SAMPLINGS["greedy"], fill_blocks=25)
    decode.engine.schedule()
    (fill,) = decode.engine.take_notes()
    for block in fill.blocks:
        decode.engine.memory.buffer[block * decode.engine.memory.block_bytes] = 1
    decode.engine.scheduler.filled(0, len(fill.blocks))
    assert alone.run()[0] != decode.run()[0]


def test_layouts_that_differ_have_other_fingerprints(load: Any, model_named: Any) -> None:
    engines = [
        load(),
        load(dtype="bfloat16"),
        load(block_size=8),
        load(model_named("qwen3 tied")),
        load(model_named("multi-head")),
    ]
    assert len({engine.memory.fingerprint for engine in engines}) == len(engines)


@pytest.mark.anyio
async def test_the_driver_tells_fills_before_it_steps_and_takes_answers(load: Any, model: Any, prompts: Any) -> None:
    prefill, decode = TorchDriver(load()), TorchDriver(load())
    held: list[Note] = []
    tokens: list[int] = []
    ended, moved, pinned = anyio.Event(), anyio.Event(), anyio.Event()
    prompt, count = prompts[-1], 12

    def request(key: int, **options: Any) -> EngineRequest:
        stopping = Stopping(max_tokens=options.pop("count", count), ignore_eos=True)
        return EngineRequest(
            key, prompt, options.pop("output", []), SAMPLINGS["greedy"], stopping, frozenset(), **options
        )

    def on_prefilled(step: Step) -> None:
        tokens.extend(step.tokens)
        if step.ended:
            assert isinstance(held[-1], Held)
            assert held[-1].is_last, "it is told before the end"
            ended.set()

    def on_decode(step: Step) -> None:
        tokens.extend(step.tokens)
        if step.ended:
            moved.set()

    def on_note(note: Note) -> None:
        if isinstance(note, Pinned):
            assert len(note.blocks) == 24
            pinned.set()
            return
        assert isinstance(note, Fill)
        assert note.key == 1
        move(prefill._engine, decode._engine, held, note, len(note.blocks))
        decode.filled(note.key, len(note.blocks))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prefill.run, on_prefilled, held.append)
        tasks.start_soon(decode.run, on_decode, on_note)
        prefill.submit(request(0, count=1, hold=True))
        with anyio.fail_after(30):
            await ended.wait()
        decode.submit(request(5, fill_blocks=25))
        decode.abort(5)  # its fill is answered by the driver
        decode.submit(request(1, output=list(tokens), fill_blocks=25))
        with anyio.fail_after(30):
            await moved.wait()
            assert tokens == model.generate(prompt, count)
            decode.pin(9, [block_hash for note in held if isinstance(note, Held) for block_hash in note.hashes][:24])
            await pinned.wait()
        prefill.release(0)
        decode.unpin(9)
        tasks.cancel_scope.cancel()
    for driver in (prefill, decode):
        driver._take_inbox()
        driver._engine.pool.check([])
        assert driver._engine.pool.num_available == driver.spec.num_blocks


def test_an_engine_that_can_never_start_a_sequence_dies_instead_of_waiting(load: Any, drive: Any) -> None:
    engine = load()
    engine.pool.allocate(engine.spec.num_blocks)
    drive(engine).add(0, [5] * 9, SAMPLINGS["greedy"])
    with pytest.raises(EngineDied, match="idle"):
        engine.can_compute(engine.schedule())
