"""Greedy tokens are those of transformers on the same weights, however they are computed."""

from collections.abc import Callable
from typing import Any

import pytest

from bus.messages.inference import Sampling
from components.engines.torch.engine import TorchEngine

GREEDY = Sampling(temperature=0.0)
NAMES = [
    "llama",
    "llama with biases",
    "llama 3 scaling",
    "llama linear scaling",
    "qwen2",
    "qwen2 yarn",
    "qwen3",
    "qwen3 tied",
    "multi-head",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_equals_transformers(
    name: str, model_named: Callable[[str], Any], load: Callable[..., TorchEngine], drive: Any, prompts: list[list[int]]
) -> None:
    model = model_named(name)
    batch = drive(load(model))
    for key, prompt in enumerate(prompts):
        batch.add(key, prompt, GREEDY)
    tokens = batch.run()
    for key, prompt in enumerate(prompts):
        assert tokens[key] == model.generate(prompt, 12), f"prompt of {len(prompt)} tokens"
        assert batch.ended[key].reason == "length"
        assert batch.ended[key].num_tokens == 12


@pytest.mark.parametrize("sizes", [(1, 13), (4, 8), (4, 13), (4, 512), (16, 8), (16, 13), (16, 512)])
def test_chunks_and_blocks_change_nothing(
    sizes: tuple[int, int], model: Any, load: Callable[..., TorchEngine], drive: Any, prompts: Any
) -> None:
    block_size, max_batch_tokens = sizes
    batch = drive(load(block_size=block_size, max_batch_tokens=max_batch_tokens))
    for key, prompt in enumerate(prompts[-4:]):
        batch.add(key, prompt, GREEDY, 20)
    tokens = batch.run()
    assert [tokens[key] for key in range(4)] == [model.generate(prompt, 20) for prompt in prompts[-4:]]


def test_sequences_that_come_later_change_nothing(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load())
    for key, prompt in enumerate(prompts):
        batch.add(key, prompt, GREEDY)
        batch.step()
        batch.step()
    tokens = batch.run()
    assert [tokens[key] for key in range(len(prompts))] == [model.generate(prompt, 12) for prompt in prompts]


def test_cached_blocks_change_nothing(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load())
    prompt = prompts[-1]
    expected = model.generate(prompt, 12)
    for key in range(3):
        batch.add(key, prompt, GREEDY)
        batch.run()
    batch.add(3, prompt[:50] + prompts[5], GREEDY)
    batch.add(4, [*prompt, *expected[:9]], GREEDY, 3)
    batch.run()
    assert [batch.tokens[key] for key in range(3)] == [expected] * 3
    assert batch.tokens[3] == model.generate(prompt[:50] + prompts[5], 12)
    assert batch.tokens[4] == expected[9:]
    assert [batch.ended[key].cached_tokens for key in range(5)] == [0, 96, 96, 48, 108]


def test_equal_prompts_in_one_step_share_what_is_being_computed(
    model: Any, load: Any, drive: Any, prompts: Any
) -> None:
    batch = drive(load(max_batch_tokens=512))
    for key in range(3):
        batch.add(key, prompts[-1], GREEDY)
    batch.step()
    assert len(batch.tokens) == 3
    assert batch.run() == dict.fromkeys(range(3), model.generate(prompts[-1], 12))
    assert [batch.ended[key].cached_tokens for key in range(3)] == [0, 96, 96]


def test_preemption_changes_nothing(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    block_bytes = 2 * 2 * 4 * 2 * 32 * 4
    batch = drive(load(kv_cache_bytes=30 * block_bytes, max_model_len=120))
    for key in range(4):
        batch.add(key, prompts[6 - key], GREEDY, 60)
    tokens = batch.run()
    assert batch.preemptions > 0
    assert [tokens[key] for key in range(4)] == [model.generate(prompts[6 - key], 60) for key in range(4)]


def test_sixteen_bits_stay_close_to_transformers(model: Any, load: Any, drive: Any, prompts: Any) -> None:
    batch = drive(load(dtype="bfloat16"))
    for key, prompt in enumerate(prompts):
        batch.add(key, prompt, Sampling(temperature=0.0, top_logprobs=0))
    tokens = batch.run()
    for key, prompt in enumerate(prompts):
        logprobs = model.logits([*prompt, *tokens[key]]).log_softmax(-1)[len(prompt) - 1 : -1]
        for row, token, given in zip(logprobs, tokens[key], batch.logprobs[key], strict=True):
            assert abs(float(row[token]) - given.logprob) < 0.15
            assert float(row.max() - row[token]) < 0.15
