"""I/O: Read a Hugging Face model directory: config.json and safetensors, whole or in shards, fused for the network."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bus.errors import BadConfig
from components.engines.torch.architecture import Architecture, parse_architecture
from components.engines.torch.network import Layer, Projection, Weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_architecture(model_dir: Path) -> Architecture:
    """Read and check config.json; raise `BadConfig` when there is none or the engine cannot compute such a model."""
    path = model_dir / "config.json"
    return parse_architecture(_read(path), str(path))


def load_weights(model_dir: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device) -> Weights:
    """Load, convert and fuse all weights; raise `BadConfig` that names a missing, superfluous or misshapen tensor."""
    with _open_checkpoint(model_dir, dtype, device) as checkpoint:
        weights = _fuse(checkpoint, architecture)
        checkpoint.check_all_used(architecture)
    return weights


class _Checkpoint:
    """The tensors of all shards by name, each converted as it is taken."""

    def __init__(self, shard_of: dict[str, "safe_open"], source: str, dtype: torch.dtype, device: torch.device) -> None:
        self._shard_of = shard_of
        self._source = source
        self._dtype = dtype
        self._device = device
        self._used: set[str] = set()

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = self.find(name, *shape)
        if tensor is None:
            raise BadConfig(f"{self._source}: tensor {name!r} is missing")
        return tensor

    def find(self, name: str, *shape: int) -> Tensor | None:
        """Return a tensor that need not be there."""
        if name not in self._shard_of:
            return None
        self._used.add(name)
        try:
            tensor: Tensor = self._shard_of[name].get_tensor(name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise BadConfig(f"{self._source}: tensor {name!r}: {error}") from error
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            raise BadConfig(f"{self._source}: tensor {name!r} is {found}, config.json asks for float {shape}")
        return tensor.to(self._device, self._dtype)

    def fuse(self, names: dict[str, int], inputs: int) -> Projection:
        """Stack linear layers, given as name and number of outputs. All or none of them have a bias."""
        weight = torch.cat([self.take(f"{name}.weight", outputs, inputs) for name, outputs in names.items()])
        biases = [self.find(f"{name}.bias", outputs) for name, outputs in names.items()]
        present = [bias for bias in biases if bias is not None]
        if present and len(present) < len(biases):
            raise BadConfig(f"{self._source}: only some of {', '.join(names)} have a bias")
        return Projection(weight, torch.cat(present) if present else None)

    def check_all_used(self, architecture: Architecture) -> None:
        """Refuse a checkpoint with tensors that the network would ignore: it is another network."""
        ignored = {"lm_head.weight"} if architecture.tie_embeddings else set()
        extra = sorted(
            name for name in self._shard_of.keys() - self._used - ignored if not name.endswith("rotary_emb.inv_freq")
        )
        if extra:
            raise BadConfig(f"{self._source}: {architecture.name} has no tensor {extra[0]!r} ({len(extra)} unknown)")


def _fuse(checkpoint: _Checkpoint, architecture: Architecture) -> Weights:
    hidden, vocab = architecture.hidden_size, architecture.vocab_size
    embedding = checkpoint.take("model.embed_tokens.weight", vocab, hidden)
    return Weights(
        embedding,
        [_layer(checkpoint, f"model.layers.{index}", architecture) for index in range(architecture.num_layers)],
        checkpoint.take("model.norm.weight", hidden),
        embedding if architecture.tie_embeddings else checkpoint.take("lm_head.weight", vocab, hidden),
    )


def _layer(checkpoint: _Checkpoint, prefix: str, architecture: Architecture) -> Layer:
    hidden, inner, head_dim = architecture.hidden_size, architecture.intermediate_size, architecture.head_dim
    queries, keys = architecture.num_heads * head_dim, architecture.num_kv_heads * head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    q_norm = checkpoint.find(f"{attention}.q_norm.weight", head_dim)
    qk_norm = None
    if q_norm is not None:
        k_norm = checkpoint.take(f"{attention}.k_norm.weight", head_dim)
        qk_norm = torch.cat([q_norm.expand(architecture.num_heads, -1), k_norm.expand(architecture.num_kv_heads, -1)])
    qkv = {f"{attention}.q_proj": queries, f"{attention}.k_proj": keys, f"{attention}.v_proj": keys}
    return Layer(
        checkpoint.take(f"{prefix}.input_layernorm.weight", hidden),
        checkpoint.fuse(qkv, hidden),
        qk_norm,
        checkpoint.fuse({f"{attention}.o_proj": hidden}, queries),
        checkpoint.take(f"{prefix}.post_attention_layernorm.weight", hidden),
        checkpoint.fuse({f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}, hidden),
        checkpoint.fuse({f"{mlp}.down_proj": hidden}, inner),
    )


@contextmanager
def _open_checkpoint(model_dir: Path, dtype: torch.dtype, device: torch.device) -> Iterator[_Checkpoint]:
    """Map the shards into memory; nothing is read before a tensor is taken."""
    with ExitStack() as stack:
        shard_of = {}
        for path in _shards(model_dir):
            try:
                shard = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise BadConfig(f"{path}: {error}") from error
            shard_of.update(dict.fromkeys(shard.keys(), shard))
        yield _Checkpoint(shard_of, str(model_dir), dtype, device)


def _shards(model_dir: Path) -> list[Path]:
    index = model_dir / INDEX
    if not index.exists():
        return [model_dir / SINGLE]
    try:
        names = set(msgspec.json.decode(_read(index), type=_Index).weight_map.values())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadConfig(f"{index}: {error}") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise BadConfig(f"{index}: shard {outside[0]!r} is not a file name")
    return [model_dir / name for name in sorted(names)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from error
