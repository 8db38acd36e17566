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
        """One token of each of b sequences. Query heads that share a key head are taken as so many positions."""
        (b, heads, head_dim), kv_heads = q.shape, self._cache.num_kv_heads
        keys = keys.view(b, -1, kv_heads, head_dim).transpose(1, 2)
        values = values.view(b, -1, kv_heads, head_dim).transpose(1, 2)
        q = q.view(b, kv_heads, heads // kv_heads, head_dim)
        return scaled_dot_product_attention(q, keys, values, attn_mask=group.bias).view(b, heads, head_dim)

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
