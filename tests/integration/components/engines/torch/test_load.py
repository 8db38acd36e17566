"""Model directories and settings, good and bad."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bus.config import Config, WorkerConfig
from bus.errors import BadConfig
from bus.messages.inference import Sampling
from components.engines.torch import load_engine
from components.engines.torch.load import load_core

WEIGHTS = "model.safetensors"


@pytest.fixture
def directory(model: Any, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(model.directory, tmp_path / "copy"))


def load(directory: Path, **settings: Any) -> Any:
    return load_core(WorkerConfig(**{"kv_cache_bytes": 2**20, "dtype": "float32", **settings}), directory, model="m")


def test_shards_are_as_good_as_one_file(directory: Path, model: Any, drive: Any, prompts: Any) -> None:
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    shard_of = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(tensors)}
    for shard in set(shard_of.values()):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    batch = drive(load(directory))
    batch.add(0, prompts[4], Sampling(temperature=0.0))
    assert batch.run()[0] == model.generate(prompts[4], 12)


def spoil(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors: dict[str, Any] = {**load_file(directory / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, directory / WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "'model.norm.weight' is missing"),
        ({"lm_head.weight": None}, "'lm_head.weight' is missing"),
        ({"model.norm.weight": torch.ones(63)}, "float32 (63,), config.json asks for float (64,)"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, "int8 (64,)"),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(1)}, "has no tensor 'model.layers.2.mlp.up_proj.weight'"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}, "only some of"),
        ({"model.norm.weight": torch.full([64], float("nan"))}, "not finite"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_name(directory: Path, changes: dict[str, Any], message: str) -> None:
    spoil(directory, **changes)
    with pytest.raises(BadConfig) as caught:
        load(directory)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 100])
def test_bytes_that_are_no_checkpoint_are_refused(directory: Path, content: bytes) -> None:
    (directory / WEIGHTS).write_bytes(content)
    with pytest.raises(BadConfig, match=WEIGHTS):
        load(directory)


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": "b.safetensors"}}', "{}", "[", "\0"]
)
def test_a_wrong_index_is_refused(directory: Path, index: str) -> None:
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadConfig):
        load(directory)


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    with pytest.raises(BadConfig, match=WEIGHTS):
        load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(BadConfig, match=r"config\.json"):
        load(directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_tokens": 8, "max_running": 9}, "max_batch_tokens"),
        ({"device": "abacus"}, "no device"),
        ({"device": "meta"}, "not supported"),
        ({"device": "cuda:77"}, "is not there"),
        ({"kv_cache_bytes": 100}, "room for 0"),
        ({"max_model_len": 257}, "the model allows 256"),
        ({"max_model_len": 200, "kv_cache_bytes": 2**17}, "out of reach"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any], message: str, model: Any) -> None:
    with pytest.raises(BadConfig, match=message):
        load(model.directory, **settings)


def test_a_small_cache_shortens_the_context(model: Any) -> None:
    spec = load(model.directory, kv_cache_bytes=2**17).spec
    assert spec.num_blocks * spec.block_size == spec.max_model_len == 128


def test_a_fresh_engine_has_no_events_and_all_blocks(model: Any) -> None:
    driver = load_engine(Config(worker=WorkerConfig(block_size=1, kv_cache_bytes=2**20)), model.directory, model="m")
    assert driver.take_events() == []
    assert driver.load().free_blocks == driver.spec.num_blocks
