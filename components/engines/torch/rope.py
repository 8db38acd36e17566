"""Pure. Rotary position embeddings: the tables, with the scalings that Llama and Qwen use."""

import math

import torch
from torch import Tensor

from components.engines.torch.architecture import RopeScaling


def rotary_tables(rope: RopeScaling, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each `(num_positions, 1, head_dim)` in float32, to use with `rotate`.

    The sines of the first half are negated, so that `rotate` needs no sign.
    """
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies(rope, head_dim))
    scale = attention_scale(rope)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat([cos, cos], -1).unsqueeze(1), torch.cat([-sin, sin], -1).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` of shape `(tokens, heads, head_dim)` to the positions that `cos` and `sin` stand for."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def frequencies(rope: RopeScaling, head_dim: int) -> Tensor:
    """Return the angle per position of each pair of dimensions, shape `(head_dim / 2,)`."""
    plain = rope.rope_theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(plain, rope)
    if rope.rope_type == "yarn":
        return _yarn(plain, rope, head_dim)
    return plain


def attention_scale(rope: RopeScaling) -> float:
    """Return what queries and keys are multiplied with; only yarn (arXiv 2309.00071, section 3.4) does so."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _llama3(plain: Tensor, rope: RopeScaling) -> Tensor:
    """Divide the low frequencies by `factor`, keep the high ones, blend in between (Llama 3.1's model card)."""
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(plain / rope.factor, plain, keep.clamp(0.0, 1.0))


def _yarn(plain: Tensor, rope: RopeScaling, head_dim: int) -> Tensor:
    """Keep dimensions that turn more than `beta_fast` times in the original length, stretch those below `beta_slow`."""

    def dimension(turns: float) -> float:
        return (
            head_dim
            * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi))
            / (2 * math.log(rope.rope_theta))
        )

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    return torch.lerp(plain, plain / rope.factor, ramp.clamp(0.0, 1.0))
