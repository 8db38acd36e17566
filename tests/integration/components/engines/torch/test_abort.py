"""What ends otherwise than by itself leaves no block behind and does not disturb the others."""

from typing import Any

import pytest

from bus.errors import InvalidRequest, PromptTooLong
from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest
from components.engines.torch.engine import check_request

GREEDY = Sampling(temperature=0.0)
BLOCK_BYTES = 2 * 2 * 4 * 2 * 32 * 4


@pytest.mark.parametrize("num_steps", range(8))
def test_an_abort_in_any_state_frees_blocks_and_spares_the_others(
    num_steps: int, model: Any, load: Any, drive: Any, prompts: Any
) -> None:
    batch = drive(load(max_running=2))
    batch.add(0, prompts[4], GREEDY)
    batch.add(1, prompts[8], GREEDY)
    batch.add(2, prompts[7], GREEDY)
    batch.add(3, prompts[6], GREEDY)
    for _ in range(num_steps):
        batch.step()
    for key in (1, 3, 1, 99):
        batch.engine.abort(key)
    tokens = batch.run()
    assert (tokens[0], tokens[2]) == (model.generate(prompts[4], 12), model.generate(prompts[7], 12))
    assert not {1, 3} & batch.ended.keys()


def test_an_abort_of_a_preempted_sequence_frees_blocks(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load(kv_cache_bytes=20 * BLOCK_BYTES))
    batch.add(0, prompts[5], GREEDY, 40)
    batch.add(1, prompts[6], GREEDY, 40)
    while not batch.preemptions:
        batch.step()
    batch.engine.abort(1)
    assert batch.run()[0] == model.generate(prompts[5], 40)


def test_a_sequence_that_overflows_ends_alone_and_poisons_nothing(
    model: Any, load: Any, drive: Any, prompts: Any
) -> None:
    engine = load(max_batch_tokens=256)
    poison = 0  # in no other prompt
    engine._network._weights.embedding[poison] = float("nan")
    batch = drive(engine)
    batch.add(0, prompts[7], GREEDY)
    batch.add(1, [*prompts[6], poison, 5, 5, 5, 5], GREEDY)
    assert batch.run() == {0: model.generate(prompts[7], 12)}
    assert (batch.ended[1].reason, batch.ended[1].num_tokens) == ("abort", 0)
    batch.add(2, [*prompts[6], 7], GREEDY)
    assert batch.run()[2] == model.generate([*prompts[6], 7], 12)
    assert batch.ended[2].cached_tokens == 0
    assert bool(engine._cache.blocks.isfinite().all())


@pytest.mark.parametrize(
    ("prompt", "output", "sampling", "error"),
    [
        ([], [], GREEDY, InvalidRequest),
        ([300], [], GREEDY, InvalidRequest),
        ([-1], [], GREEDY, InvalidRequest),
        ([5], [300], GREEDY, InvalidRequest),
        ([5], [], Sampling(logit_bias={300: 1.0}), InvalidRequest),
        ([5] * 256, [], GREEDY, PromptTooLong),
        ([5] * 250, [5] * 7, GREEDY, PromptTooLong),
    ],
)
def test_what_cannot_be_computed_is_refused(
    prompt: list[int], output: list[int], sampling: Sampling, error: type[Exception], load: Any
) -> None:
    request = EngineRequest(1, prompt, output, sampling, Stopping(max_tokens=5), frozenset())
    with pytest.raises(error):
        check_request(request, load().spec)


def test_a_prompt_that_just_fits_yields_one_token(model: Any, load: Any, drive: Any) -> None:
    batch = drive(load())
    batch.add(0, [5] * 255, GREEDY)
    assert batch.run()[0] == model.generate([5] * 255, 1)
    assert batch.ended[0].reason == "length"
