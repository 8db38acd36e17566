"""Small random models that transformers wrote and can compute too, and engines that load them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bus.config import WorkerConfig
from bus.messages.inference import Sampling, Stopping
from components.engines import Ended, EngineRequest, Logprobs, Step
from components.engines.torch.engine import TorchEngine
from components.engines.torch.load import load_core

VOCAB = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def _rope(**keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **keys}}


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama 3 scaling": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            **_rope(
                rope_type="llama3",
                factor=8.0,
                original_max_position_embeddings=32,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
        )
    ),
    "llama linear scaling": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **_rope(rope_type="linear", factor=4.0))),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen2 yarn": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64))
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "qwen3 tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)),
    "multi-head": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 4})),
}


class Model:
    """One model: its directory, and what transformers says to it."""

    def __init__(self, directory: Path, network: PreTrainedModel) -> None:
        self.directory = directory
        self.network = network

    @torch.inference_mode()
    def generate(self, prompt: list[int], count: int) -> list[int]:
        """Return `count` greedy tokens, whatever they are."""
        tokens = self.network.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
        )
        return tokens[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits after each token, `(len(tokens), vocab)`."""
        return self.network(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="session")
def model_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Make a model of `MODELS`, once."""

    @cache
    def make(name: str) -> Model:
        torch.manual_seed(7)
        network = MODELS[name]().eval()
        for parameter in network.parameters():  # livelier than fresh weights, biases and norms included
            parameter.data.add_(torch.randn_like(parameter) * 0.15)
        directory = tmp_path_factory.mktemp("model")
        network.save_pretrained(directory)
        return Model(directory, network)

    return make


@pytest.fixture
def model(model_named: Callable[[str], Model]) -> Model:
    """Any model, where it does not matter which."""
    return model_named("qwen3")


@pytest.fixture
def load(model: Model) -> Callable[..., TorchEngine]:
    """Load an engine with small blocks and chunks; keywords are settings of the worker."""

    def load_model(model: Model = model, **settings: Any) -> TorchEngine:
        defaults = {
            "dtype": "float32", "block_size": 4, "max_batch_tokens": 32, "max_running": 8, "kv_cache_bytes": 2**21,
        }  # fmt: skip
        return load_core(WorkerConfig(**{**defaults, **settings}), model.directory, model="test")

    return load_model


class Drive:
    """Steps an engine and keeps what it says, by key."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[Logprobs]] = {}
        self.ended: dict[int, Ended] = {}
        self.preemptions = 0

    def add(self, key: int, prompt: list[int], sampling: Sampling, count: int = 12, **options: Any) -> None:
        stopping = Stopping(**{"max_tokens": count, "ignore_eos": True, **options.pop("stopping", {})})
        self.engine.add(
            EngineRequest(key, prompt, options.pop("output", []), sampling, stopping, frozenset([1]), **options)
        )

    def step(self) -> None:
        self.take(self.engine.step())

    def take(self, step: Step) -> None:
        self.preemptions += step.stats.preemptions
        for key, token in zip(step.keys, step.tokens, strict=True):
            assert key not in self.ended
            self.tokens.setdefault(key, []).append(token)
        for each in step.logprobs:
            self.logprobs.setdefault(step.keys[each.row], []).append(each)
        self.ended |= {ended.key: ended for ended in step.ended}
        self.engine.pool.check(self.engine.scheduler.block_lists())

    def run(self) -> dict[int, list[int]]:
        """Step until all is done; every block must be free then."""
        while self.engine.has_work:
            self.step()
        assert self.engine.pool.num_available == self.engine.spec.num_blocks
        return self.tokens


@pytest.fixture
def drive() -> type[Drive]:
    return Drive


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts around the boundaries of blocks of 4 and chunks of 32."""

    def prompt(length: int) -> list[int]:
        return torch.randint(2, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()

    return [prompt(length) for length in (1, 3, 4, 5, 16, 31, 32, 33, 100)]
