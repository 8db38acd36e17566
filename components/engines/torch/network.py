"""Pure. The forward pass of Llama, Qwen2 and Qwen3: they differ in biases and in the norms of queries and keys."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu

from components.engines.torch.architecture import Architecture
from components.engines.torch.attention import PagedAttention
from components.engines.torch.batch import Batch
from components.engines.torch.cache import KvCache
from components.engines.torch.rope import rotary_tables, rotate


class Projection(NamedTuple):
    """A linear layer, several of the checkpoint's stacked along their outputs."""

    weight: Tensor
    """`(outputs, inputs)`"""
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Layer(NamedTuple):
    """Weights of one decoder layer."""

    attention_norm: Tensor
    qkv: Projection
    qk_norm: Tensor | None
    """`(heads + kv_heads, head_dim)`: the query norm for every query head, the key norm for every key head."""
    output: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


class Weights(NamedTuple):
    """Weights of the whole network."""

    embedding: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Tensor
    """`(vocab, hidden)`; the embedding itself where the two are tied."""


class Network:
    """Computes the states of a batch, and logits from them; leaves keys and values in the cache."""

    def __init__(self, architecture: Architecture, weights: Weights, cache: KvCache, max_model_len: int) -> None:
        self._weights = weights
        self._num_heads = architecture.num_heads
        self._num_qk_heads = architecture.num_heads + architecture.num_kv_heads
        self._head_dim = architecture.head_dim
        self._eps = architecture.norm_eps
        self._attention = PagedAttention(cache)
        cos, sin = rotary_tables(architecture.rope, architecture.head_dim, max_model_len)
        self._cos, self._sin = cos.to(weights.norm), sin.to(weights.norm)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Return the states of all rows after the last layer, `(t, hidden)`, before the norm."""
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        x = embedding(batch.tokens, self._weights.embedding)
        for index, layer in enumerate(self._weights.layers):
            q, k, v = self._qkv(layer, self._norm(x, layer.attention_norm), cos, sin)
            x = x + layer.output(self._attention.attend(index, q, k, v, batch))
            gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(silu(gate) * up)
        return x

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """Return `(rows, vocab)` for states `(rows, hidden)`."""
        return linear(self.embed(states), self._weights.head)

    @torch.inference_mode()
    def embed(self, states: Tensor) -> Tensor:
        """Return states `(rows, hidden)` as they are after the last norm."""
        return self._norm(states, self._weights.norm)

    def _qkv(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries `(t, heads, head_dim)`, keys and values `(t, kv_heads * head_dim)`."""
        qkv = layer.qkv(x)
        qk_size = self._num_qk_heads * self._head_dim
        qk = qkv[:, :qk_size].view(len(x), self._num_qk_heads, self._head_dim)
        if layer.qk_norm is not None:
            qk = rms_norm(qk, (self._head_dim,), eps=self._eps) * layer.qk_norm
        qk = rotate(qk, cos, sin)
        return qk[:, : self._num_heads], qk[:, self._num_heads :].flatten(1), qkv[:, qk_size:]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, eps=self._eps) * weight
