"""I/O. The model directory that a worker serves: where it is, what it says, and which of its files frontends need."""

from pathlib import Path
from typing import TypeVar

import msgspec

from bus.config import WorkerConfig
from bus.errors import BadConfig
from components import builtin

FRONTEND_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""Files that go to frontends where they exist; `tokenizer.json` must."""

MAX_FILE_BYTES = 128 * 2**20


class _ModelConfig(msgspec.Struct):
    """The part of config.json that a worker reads."""

    vocab_size: int
    max_position_embeddings: int = 0
    eos_token_id: int | list[int] | None = None


class _GenerationConfig(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


T = TypeVar("T")


class Model(msgspec.Struct, frozen=True):
    """What is known of a model before an engine loads it."""

    name: str
    """As clients call it."""
    directory: Path
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    files: dict[str, bytes]
    """Contents of those of `FRONTEND_FILES` that exist."""


def read_model(config: WorkerConfig) -> Model:
    """Find and read the model of `config`; blocks on the disk. Raises `BadConfig` that says what to do next."""
    directory, name = locate_model(config)
    model = _read_json(directory / "config.json", _ModelConfig)
    generation = directory / "generation_config.json"
    eos_token_id = _read_json(generation, _GenerationConfig).eos_token_id if generation.is_file() else None
    max_model_len = config.max_model_len or model.max_position_embeddings
    if max_model_len < 2:
        raise BadConfig(
            f"{directory}/config.json names no max_position_embeddings: say how long a sequence may be, "
            "as in --set worker.max_model_len=4096"
        )
    files = {name: _read(directory / name) for name in FRONTEND_FILES if (directory / name).is_file()}
    if "tokenizer.json" not in files:
        raise BadConfig(f"no tokenizer.json in {directory}: download the model again, with its tokenizer files")
    return Model(
        name=name,
        directory=directory,
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=frozenset(_as_list(model.eos_token_id) + _as_list(eos_token_id)),
        files=files,
    )


def locate_model(config: WorkerConfig) -> tuple[Path, str]:
    """Return the directory of the model, and its name; raise `BadConfig` when there is none."""
    if config.model == "builtin":
        return builtin.MODEL_DIR, config.served_name or builtin.MODEL_NAME
    directory = Path(config.model).expanduser()
    if not directory.is_dir():
        raise BadConfig(
            f"no model directory {config.model!r}: download one, as in "
            f"`hf download Qwen/Qwen3-0.6B --local-dir {directory.name or 'model'}`, or use --set worker.model=builtin"
        )
    return directory, config.served_name or directory.resolve().name


def _read_json(path: Path, content_type: type[T]) -> T:
    try:
        return msgspec.json.decode(_read(path), type=content_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadConfig(f"{path} is not what a model directory holds: {error}") from error


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadConfig(f"{path} holds {size} bytes, more than a frontend takes ({MAX_FILE_BYTES})")
        return path.read_bytes()
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror or error}") from error


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]
