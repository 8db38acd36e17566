"""Pure. What a model's config.json says about its network, checked against what this engine can compute."""

from typing import Literal

import msgspec

from bus.errors import BadConfig

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How the rotary frequencies are stretched beyond the length that the model was first trained on."""

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a dense decoder. Biases and q/k norms are there when the checkpoint has tensors for them."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeScaling
    max_model_len: int
    tie_embeddings: bool
    dtype: Dtype
    eos_token_ids: frozenset[int]


class _HfConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that matter here; older and newer spellings side by side."""

    architectures: list[str] = []
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, object] | None = None
    rope_parameters: dict[str, object] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    use_sliding_window: bool = False
    layer_types: list[str] | None = None
    quantization_config: dict[str, object] | None = None
    eos_token_id: int | list[int] | None = None


def parse_architecture(text: bytes, source: str) -> Architecture:
    """Read config.json; raise `BadConfig` that names what is missing or not supported. `source` is for messages."""
    try:
        config = msgspec.json.decode(text, type=_HfConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadConfig(f"{source}: {error}") from error
    name = next(iter(config.architectures), "")
    if name not in ARCHITECTURES:
        raise _unsupported(source, "architecture", name, ARCHITECTURES)
    if config.hidden_act != "silu":
        raise _unsupported(source, "hidden_act", config.hidden_act, ("silu",))
    if config.quantization_config is not None:
        method = str(config.quantization_config.get("quant_method", "unknown"))
        raise _unsupported(source, "quantization_config", method, ("unquantized weights",))
    if config.use_sliding_window or set(config.layer_types or ()) - {"full_attention"}:
        raise _unsupported(source, "attention", "sliding window", ("full attention in every layer",))
    dtype_name = (config.dtype or config.torch_dtype or "float32").removeprefix("torch.")
    dtype = next((known for known in DTYPES if known == dtype_name), None)
    if dtype is None:
        raise _unsupported(source, "dtype", dtype_name, DTYPES)
    num_kv_heads = config.num_key_value_heads or config.num_attention_heads
    sizes = (config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers, num_kv_heads)
    if min(*sizes, config.num_attention_heads, config.max_position_embeddings) < 1:
        raise BadConfig(f"{source}: every size must be at least 1")
    if config.num_attention_heads % num_kv_heads:
        raise BadConfig(f"{source}: {config.num_attention_heads} heads do not share {num_kv_heads} key heads evenly")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    if head_dim < 2 or head_dim % 2:
        raise BadConfig(f"{source}: head_dim {head_dim} is not a positive even number")
    rope = _parse_rope(config, source)
    eos = config.eos_token_id
    return Architecture(
        name=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=config.rms_norm_eps,
        rope=rope,
        max_model_len=_max_model_len(config.max_position_embeddings, rope),
        tie_embeddings=config.tie_word_embeddings,
        dtype=dtype,
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
    )


def _parse_rope(config: _HfConfig, source: str) -> RopeScaling:
    keys = dict(config.rope_parameters or config.rope_scaling or {})
    rope_type = str(keys.pop("rope_type", keys.pop("type", "default")))
    if rope_type not in ROPE_TYPES:
        raise _unsupported(source, "rope_type", rope_type, ROPE_TYPES)
    if rope_type != "default" and "factor" not in keys:
        raise BadConfig(f"{source}: rope_type {rope_type!r} without a factor")
    if keys.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(source, "partial_rotary_factor", str(keys["partial_rotary_factor"]), ("1.0",))
    keys.setdefault("rope_theta", config.rope_theta or 10_000.0)
    keys.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    try:
        return msgspec.convert({**keys, "rope_type": rope_type}, RopeScaling)
    except msgspec.ValidationError as error:
        raise BadConfig(f"{source}: rope settings: {error}") from error


def _max_model_len(max_position_embeddings: int, rope: RopeScaling) -> int:
    """Yarn's settings are added to a config whose `max_position_embeddings` may still be the unstretched one."""
    if rope.rope_type != "yarn":
        return max_position_embeddings
    return max(max_position_embeddings, int(rope.original_max_position_embeddings * rope.factor))


def _unsupported(source: str, key: str, value: str, supported: tuple[str, ...]) -> BadConfig:
    return BadConfig(f"{source}: {key} {value or 'missing'!r} is not supported; supported: {', '.join(supported)}")
