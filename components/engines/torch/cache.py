"""Pure. The memory of the KV blocks: one tensor, block first, and the views that a layer reads and writes through."""

import numpy as np
import torch
from torch import Tensor

from components.engines.torch.architecture import Architecture


class KvCache:
    """`blocks` is `(num_blocks, layers, 2, block_size, kv_heads, head_dim)`: a block is one contiguous row.

    One index per block or token addresses keys and values of all layers: the views of a layer start at its own part of
    block 0, so the same strides are right for each of them.
    """

    def __init__(
        self, architecture: Architecture, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        layers, width = architecture.num_layers, architecture.num_kv_heads * architecture.head_dim
        shape = (num_blocks, layers, 2, block_size, architecture.num_kv_heads, architecture.head_dim)
        self.blocks = _zeros(shape, dtype, device)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.num_kv_heads = architecture.num_kv_heads
        self.block_bytes = block_size * width * dtype.itemsize
        """Size of the keys of one layer of one block."""
        self.block_stride = layers * 2
        """Rows of `block_size` tokens from one block to the next: `k_blocks[layer][block * block_stride]`."""
        self.token_stride = layers * 2 * block_size
        """Rows of one token from one block to the next: `k_tokens[layer][block * token_stride + offset]`."""
        by_block = self.blocks.view(-1, block_size * width)
        by_token = self.blocks.view(-1, width)
        self.k_blocks = [by_block[2 * layer :] for layer in range(layers)]
        self.v_blocks = [by_block[2 * layer + 1 :] for layer in range(layers)]
        self.k_tokens = [by_token[2 * layer * block_size :] for layer in range(layers)]
        self.v_tokens = [by_token[(2 * layer + 1) * block_size :] for layer in range(layers)]

    def scrub(self, blocks: list[int]) -> None:
        """Zero blocks: what is not a number would spread through masked positions, where 0 times it is no 0."""
        self.blocks[torch.tensor(blocks, dtype=torch.int64, device=self.blocks.device)] = 0


def block_bytes(architecture: Architecture, block_size: int, dtype: torch.dtype) -> int:
    """Return the size of one block over all layers, keys and values."""
    heads = architecture.num_kv_heads * architecture.head_dim
    return architecture.num_layers * 2 * block_size * heads * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU, pages that the system fills in only when they are touched (`torch.zeros` touches all)."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = np.prod(shape, dtype=np.int64) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
