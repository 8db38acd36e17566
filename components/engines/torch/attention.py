"""Pure. Attention over paged keys and values: gather the blocks of a context, then scaled dot products.

Gathering, and one call for all sequences of similar length, beats a loop over blocks or sequences on a CPU, and needs
nothing but torch on a GPU.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from components.engines.torch.batch import Batch, DecodeGroup, PrefillSpan
from components.engines.torch.cache import KvCache


class PagedAttention:
    """Attention of all layers over one cache. Keeps memory for gathered blocks: fresh pages cost more than the copy."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        is_slow = cache.blocks.device.type == "cpu" and cache.blocks.dtype != torch.float32
        self._attend_heads = attend_as_block_diagonal if is_slow else attend_by_head
        self._gathered = cache.k_blocks[0].new_empty(2, 0, cache.k_blocks[0].shape[1])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        """Store keys and values `(t, kv_heads * head_dim)` of the step, then let `q` look at its contexts.

        `q` is `(t, heads, head_dim)`; returns `(t, heads * head_dim)`.
        """
        cache = self._cache
        cache.k_tokens[layer].index_copy_(0, batch.slots, k)
        cache.v_tokens[layer].index_copy_(0, batch.slots, v)
        out = torch.empty_like(q)
        for group in batch.decode:
            keys, values = self._gather(layer, group.blocks)
            out[group.first : group.last] = self._decode(q[group.first : group.last], keys, values, group)
        for span in batch.prefill:
            rows = slice(span.first, span.last)
            keys, values = (k[rows], v[rows]) if span.blocks is None else self._gather(layer, span.blocks)
            out[rows] = self._prefill(q[rows], keys, values, span)
        return out.view(len(q), -1)

    def _decode(self, q: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup) -> Tensor:
        """Let one token of each of b sequences look at its context: `(b, heads, head_dim)` in and out."""
        keys = keys.view(len(q), -1, self._cache.num_kv_heads, q.shape[-1])
        values = values.view(keys.shape)
        return self._attend_heads(q, keys, values, group.bias)

    def _prefill(self, q: Tensor, keys: Tensor, values: Tensor, span: PrefillSpan) -> Tensor:
        """Consecutive tokens of one sequence."""
        head_dim, kv_heads = q.shape[-1], self._cache.num_kv_heads
        keys = keys.reshape(1, -1, kv_heads, head_dim).transpose(1, 2)
        values = values.reshape(1, -1, kv_heads, head_dim).transpose(1, 2)
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=span.bias,
            is_causal=span.bias is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    def _gather(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of these blocks, each `(len(rows), block_size * kv_heads * head_dim)`.

        They are overwritten by the next call.
        """
        if self._gathered.shape[1] < len(rows):
            self._gathered = self._gathered.new_empty(2, len(rows), self._gathered.shape[2])
        keys, values = self._gathered[0, : len(rows)], self._gathered[1, : len(rows)]
        torch.index_select(self._cache.k_blocks[layer], 0, rows, out=keys)
        torch.index_select(self._cache.v_blocks[layer], 0, rows, out=values)
        return keys, values


def attend_by_head(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attend with torch's own kernel. Query heads that share a key head are taken as so many positions of it.

    `q` is `(b, heads, head_dim)`, keys and values `(b, context, kv_heads, head_dim)`, `bias` `(b, context)`.
    """
    b, heads, head_dim = q.shape
    kv_heads = keys.shape[2]
    q = q.view(b, kv_heads, heads // kv_heads, head_dim)
    out = scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias[:, None, None])
    return out.view(b, heads, head_dim)


def attend_as_block_diagonal(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attend like `attend_by_head`, as two matrix products per sequence over all heads at once.

    Each query head is spread over the width of all key heads, with zeros but in its own. That multiplies the work by
    `kv_heads` and still takes half the time in 16-bit formats on a CPU, where many small products cost more than a few
    large ones. Scores are rounded to the format, as in the plain implementation that checkpoints come with.
    """
    b, heads, head_dim = q.shape
    context, kv_heads = keys.shape[1:3]
    own = torch.eye(kv_heads, dtype=q.dtype)[:, None, :, None]
    wide = (q.view(b, kv_heads, -1, 1, head_dim) * own).view(b, heads, kv_heads * head_dim)
    scores = torch.baddbmm(bias[:, None], wide, keys.view(b, context, -1).transpose(1, 2), alpha=head_dim**-0.5)
    out = torch.bmm(scores.softmax(-1), values.view(b, context, -1))
    by_head = out.view(b, kv_heads, -1, kv_heads, head_dim)
    return by_head.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(b, heads, head_dim)
