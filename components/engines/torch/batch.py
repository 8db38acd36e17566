"""Pure. One step as tensors: the tokens to compute, where keys and values go, what each sequence looks at."""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from components.engines.batching.scheduler import Chunk, Plan
from components.engines.batching.sequence import Sequence
from components.engines.torch.cache import KvCache

SMALL_BLOCKS = 8
"""Sequences of up to so many blocks share a group: padding them costs less than one more kernel call."""
GROUP_BYTES = 16 * 2**20
"""Keys that one group gathers from the cache at most (a single longer sequence still makes a group)."""


class DecodeGroup(NamedTuple):
    """Rows `first:last` of the step: one token of each of b sequences with contexts of similar length."""

    first: int
    last: int
    blocks: Tensor
    """Rows of `KvCache.k_blocks`, `(b * n,)`: n blocks of each sequence, padded with block 0."""
    bias: Tensor
    """0 where a position is in the context, else -inf, `(b, n * block_size)`."""


class PrefillSpan(NamedTuple):
    """Rows `first:last` of the step: consecutive tokens of one sequence."""

    first: int
    last: int
    blocks: Tensor | None
    """Rows of `KvCache.k_blocks` that hold the context up to the last token; None: the span is the whole context."""
    bias: Tensor | None
    """0 where a token may look, else -inf, `(last - first, n * block_size)`; None: causal from position 0."""


class Batch(NamedTuple):
    """Input of one forward pass over t tokens."""

    tokens: Tensor
    """`(t,)`"""
    positions: Tensor
    """`(t,)`"""
    slots: Tensor
    """Where keys and values go, rows of `KvCache.k_tokens`, `(t,)`."""
    decode: list[DecodeGroup]
    prefill: list[PrefillSpan]
    sampled: Tensor
    """Rows whose logits are needed, in the order of `Plan.sampling`."""


def build_batch(plan: Plan, cache: KvCache) -> Batch:
    """Turn a plan into tensors on the cache's device."""
    tokens = [sequence.tokens[-1] for sequence in plan.decode]
    positions = [sequence.num_computed for sequence in plan.decode]
    slots = [
        sequence.blocks[-1] * cache.token_stride + position % cache.block_size
        for sequence, position in zip(plan.decode, positions, strict=True)
    ]
    sampled = list(range(len(tokens)))
    spans = []
    for chunk in plan.prefill:
        spans.append(_prefill_span(chunk, len(tokens), cache))
        chunk_positions = np.arange(chunk.start, chunk.start + chunk.count)
        blocks = np.asarray(chunk.sequence.blocks)[chunk_positions // cache.block_size]
        tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
        positions += chunk_positions.tolist()
        slots += (blocks * cache.token_stride + chunk_positions % cache.block_size).tolist()
        if chunk.is_last:
            sampled.append(len(tokens) - 1)
    groups = length_groups([len(sequence.blocks) for sequence in plan.decode], GROUP_BYTES // cache.block_bytes)
    return Batch(
        _indices(tokens, cache),
        _indices(positions, cache),
        _indices(slots, cache),
        [_decode_group(plan.decode, first, last, cache) for first, last in groups],
        spans,
        _indices(sampled, cache),
    )


def length_groups(lengths: Items[int], max_blocks: int) -> list[tuple[int, int]]:
    """Cut lengths in blocks, longest first, into ranges that waste less than half on padding.

    No range is larger than `max_blocks` after padding, unless one sequence alone is.
    """
    groups: list[tuple[int, int]] = []
    first = 0
    for index, length in enumerate(lengths):
        longest = lengths[first]
        is_uneven = length * 2 < longest and longest > SMALL_BLOCKS
        if is_uneven or (index > first and (index + 1 - first) * longest > max_blocks):
            groups.append((first, index))
            first = index
    if lengths:
        groups.append((first, len(lengths)))
    return groups


def _decode_group(sequences: list[Sequence], first: int, last: int, cache: KvCache) -> DecodeGroup:
    group = sequences[first:last]
    table = np.zeros((len(group), len(group[0].blocks)), dtype=np.int64)
    for row, sequence in zip(table, group, strict=True):
        row[: len(sequence.blocks)] = sequence.blocks
    context = _indices([sequence.num_computed + 1 for sequence in group], cache)
    bias = _bias(context, table.shape[1], cache)
    return DecodeGroup(first, last, _block_rows(table, cache), bias)


def _prefill_span(chunk: Chunk, first: int, cache: KvCache) -> PrefillSpan:
    end = chunk.start + chunk.count
    if chunk.start == 0:
        return PrefillSpan(first, first + chunk.count, None, None)
    num_blocks = -(-end // cache.block_size)
    context = torch.arange(chunk.start + 1, end + 1, device=cache.blocks.device)
    blocks = np.asarray(chunk.sequence.blocks)[:num_blocks]
    return PrefillSpan(first, first + chunk.count, _block_rows(blocks, cache), _bias(context, num_blocks, cache))


def _bias(context: Tensor, num_blocks: int, cache: KvCache) -> Tensor:
    """Return 0 at the first `context[i]` positions of row i and -inf after, `(rows, num_blocks * block_size)`."""
    positions = torch.arange(num_blocks * cache.block_size, device=context.device)
    bias = torch.zeros(len(context), len(positions), dtype=cache.blocks.dtype, device=context.device)
    return bias.masked_fill_(positions >= context[:, None], float("-inf"))


def _block_rows(blocks: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", cache: KvCache) -> Tensor:
    return torch.from_numpy(blocks * cache.block_stride).view(-1).to(cache.blocks.device)


def _indices(values: list[int], cache: KvCache) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=cache.blocks.device)
