import pytest
import torch
from torch.nn.functional import softmax

from bus.messages.inference import Sampling, Stopping
from components.engines import EngineRequest
from components.engines.batching.scheduler import Chunk, Plan
from components.engines.batching.sequence import Sequence
from components.engines.torch.architecture import Architecture, RopeScaling
from components.engines.torch.attention import attend_as_block_diagonal, attend_by_head
from components.engines.torch.batch import build_batch, length_groups
from components.engines.torch.cache import KvCache, block_bytes

SHAPE = Architecture(
    name="LlamaForCausalLM",
    vocab_size=10,
    hidden_size=8,
    intermediate_size=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    norm_eps=1e-6,
    rope=RopeScaling(),
    max_model_len=64,
    tie_embeddings=False,
    dtype="float32",
    eos_token_ids=frozenset(),
)


def make_cache() -> KvCache:
    return KvCache(SHAPE, num_blocks=6, block_size=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([3], [(0, 1)]),
        ([8, 2, 1], [(0, 3)]),
        ([100, 60, 50, 49, 20, 8, 1], [(0, 2), (2, 4), (4, 5), (5, 7)]),
        ([300, 300], [(0, 1), (1, 2)]),
        ([90, 90, 90], [(0, 2), (2, 3)]),
    ],
)
def test_lengths_are_grouped_with_little_padding(lengths: list[int], groups: list[tuple[int, int]]) -> None:
    assert length_groups(lengths, max_blocks=200) == groups


def test_views_of_a_layer_address_its_part_of_every_block() -> None:
    cache = make_cache()
    width = SHAPE.num_kv_heads * SHAPE.head_dim
    assert cache.blocks.stride(0) * 4 == block_bytes(SHAPE, 4, torch.float32)
    cache.k_tokens[1][2 * cache.token_stride + 3] = 7.0
    cache.v_tokens[2][5 * cache.token_stride] = 8.0
    assert bool((cache.blocks[2, 1, 0, 3] == 7.0).all())
    assert bool((cache.blocks[5, 2, 1, 0] == 8.0).all())
    assert int(cache.blocks.count_nonzero()) == 2 * width
    assert float(cache.k_blocks[1][2 * cache.block_stride].sum()) == 7.0 * width
    assert float(cache.v_blocks[2][5 * cache.block_stride].sum()) == 8.0 * width
    cache.scrub([2])
    assert int(cache.blocks.count_nonzero()) == width


def test_a_step_becomes_rows_slots_and_contexts() -> None:
    cache = make_cache()

    def sequence(tokens: list[int], computed: int, blocks: list[int]) -> Sequence:
        request = EngineRequest(1, tokens, [], Sampling(), Stopping(max_tokens=5), frozenset())
        made = Sequence(request, model="m", max_model_len=64)
        made.num_computed = computed
        made.blocks.extend(blocks)
        return made

    long, short = sequence([1] * 5 + [9], 5, [3, 1]), sequence([8, 7], 1, [4])
    middle = sequence([2, 3, 4, 5, 6, 7, 8, 9], 3, [0, 5])
    fresh = sequence([6, 5], 0, [2])
    plan = Plan([long, short], [Chunk(middle, 3, 3), Chunk(fresh, 0, 2)], 0)
    batch = build_batch(plan, cache)
    assert batch.tokens.tolist() == [9, 7, 5, 6, 7, 6, 5]
    assert batch.positions.tolist() == [5, 1, 3, 4, 5, 0, 1]
    stride = cache.token_stride
    assert batch.slots.tolist() == [
        stride + 1,
        4 * stride + 1,
        3,
        5 * stride,
        5 * stride + 1,
        2 * stride,
        2 * stride + 1,
    ]
    assert batch.sampled.tolist() == [0, 1, 6]
    (group,) = batch.decode
    assert group.blocks.tolist() == [3 * 6, 1 * 6, 4 * 6, 0]
    assert (group.bias == 0).sum(-1).tolist() == [6, 2]
    chunk, start = batch.prefill
    assert chunk.blocks is not None
    assert chunk.bias is not None
    assert chunk.blocks.tolist() == [0, 5 * 6]
    assert (chunk.bias == 0).sum(-1).tolist() == [4, 5, 6]
    assert (start.first, start.last, start.blocks, start.bias) == (5, 7, None, None)


def test_both_ways_to_attend_are_attention() -> None:
    torch.manual_seed(0)
    b, heads, kv_heads, head_dim, context = 3, 6, 2, 8, 5
    q = torch.randn(b, heads, head_dim)
    keys, values = torch.randn(2, b, context, kv_heads, head_dim)
    bias = torch.zeros(b, context)
    bias[0, 3:] = bias[1, 1:] = float("-inf")
    by_head = attend_by_head(q, keys, values, bias)
    torch.testing.assert_close(attend_as_block_diagonal(q, keys, values, bias), by_head)
    for head in range(heads):
        k, v = keys[:, :, head // 3], values[:, :, head // 3]
        scores = (q[:, head, None] * k).sum(-1) * head_dim**-0.5 + bias
        mixed = (softmax(scores, -1)[:, :, None] * v).sum(1)
        torch.testing.assert_close(by_head[:, head], mixed)
