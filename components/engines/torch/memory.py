"""Pure. The cache as others see it who read and write whole blocks: addresses, and what the bytes mean."""

from collections.abc import Iterator
from functools import partial

import msgspec
import torch
from torch import Tensor
from xxhash import xxh3_64

from components.engines.exchange import BlockMemory
from components.engines.torch.architecture import Architecture
from components.engines.torch.cache import KvCache
from components.engines.torch.copier import open_copier
from components.engines.torch.network import Weights

SAMPLE_BYTES = 4096
"""Of each tensor of the weights: training or quantizing them again changes them everywhere."""


def describe_memory(cache: KvCache, architecture: Architecture, weights: Weights, *, model: str) -> BlockMemory:
    """Return where the blocks are, and a fingerprint that only engines with equal keys and values share."""
    blocks = cache.blocks
    block_bytes = blocks[0].numel() * blocks.itemsize
    buffer = None if blocks.is_cuda else blocks.view(-1).view(torch.uint8).numpy().data
    return BlockMemory(
        address=blocks.data_ptr(),
        block_bytes=block_bytes,
        num_blocks=cache.num_blocks,
        device=f"cuda:{blocks.device.index or 0}" if blocks.is_cuda else "cpu",
        fingerprint=_fingerprint(cache, architecture, weights, model),
        buffer=buffer,
        open_copier=partial(open_copier, blocks) if blocks.is_cuda else None,
    )


def _fingerprint(cache: KvCache, architecture: Architecture, weights: Weights, model: str) -> str:
    """Name the layout so that people can read what differs, and all the rest by a digest."""
    shape = "x".join(map(str, cache.blocks.shape[1:]))
    dtype = str(cache.blocks.dtype).removeprefix("torch.")
    facts = msgspec.structs.replace(architecture, name="", max_model_len=0, eos_token_ids=frozenset())
    digest = xxh3_64(f"{model}\0{facts}".encode("utf-8", "surrogatepass"))
    for tensor in _tensors(weights):
        digest.update(_sample(tensor))
    return f"torch1-{dtype}-{shape}-tp1-{digest.hexdigest()}"


def _tensors(weights: Weights) -> Iterator[Tensor]:
    yield weights.embedding
    for layer in weights.layers:
        yield layer.qkv.weight
        yield layer.output.weight
        yield layer.down.weight
    yield weights.norm


def _sample(tensor: Tensor) -> bytes:
    part = tensor.reshape(-1)[: SAMPLE_BYTES // tensor.itemsize]
    return part.contiguous().view(torch.uint8).cpu().numpy().tobytes()
