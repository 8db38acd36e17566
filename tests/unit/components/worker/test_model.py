"""Model directories: what is wrong with one is said with what to do next."""

import json
from pathlib import Path

import pytest

from bus.config import WorkerConfig
from bus.errors import BadConfig
from components.worker.model import read_model


def write_model(directory: Path, **config: object) -> Path:
    (directory / "config.json").write_text(json.dumps({"vocab_size": 100, "max_position_embeddings": 64, **config}))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_directory_is_read(tmp_path: Path) -> None:
    write_model(tmp_path, eos_token_id=2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    model = read_model(WorkerConfig(model=str(tmp_path), served_name="org/tiny"))
    assert (model.name, model.vocab_size, model.max_model_len) == ("org/tiny", 100, 64)
    assert model.eos_token_ids == {2, 3}
    assert sorted(model.files) == ["generation_config.json", "tokenizer.json"]


def test_the_directory_names_the_model_and_the_length_can_be_set(tmp_path: Path) -> None:
    write_model(tmp_path, max_position_embeddings=0)
    model = read_model(WorkerConfig(model=str(tmp_path), max_model_len=16))
    assert (model.name, model.max_model_len) == (tmp_path.name, 16)


def test_a_missing_directory_says_how_to_get_one() -> None:
    with pytest.raises(BadConfig, match="hf download"):
        read_model(WorkerConfig(model="/nowhere/model"))


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (write_model(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(BadConfig, match="tokenizer"):
        read_model(WorkerConfig(model=str(tmp_path)))


def test_a_model_that_does_not_say_how_long_it_is_needs_to_be_told(tmp_path: Path) -> None:
    write_model(tmp_path, max_position_embeddings=0)
    with pytest.raises(BadConfig, match="max_model_len=4096"):
        read_model(WorkerConfig(model=str(tmp_path)))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"vocab_size": "many"}', "\x00", "[" * 10_000])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (write_model(tmp_path) / "config.json").write_text(content)
    with pytest.raises(BadConfig, match=r"config\.json"):
        read_model(WorkerConfig(model=str(tmp_path)))


def test_an_empty_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"config\.json"):
        read_model(WorkerConfig(model=str(tmp_path)))
