"""The bounds of a trace hold, and what they say of reuse and latency can be worked out by hand."""

import msgspec
import pytest

from components.engines.mock.timing import step_seconds
from components.replay.bound import Bound, find_bound, prefill_alone_s
from components.replay.trace import TraceRequest
from components.replay.world import DYNAMO_MOCKER


def request(*ids: int) -> TraceRequest:
    return TraceRequest(timestamp=0, input_length=512 * len(ids), output_length=1, hash_ids=list(ids))


def bound(requests: list[TraceRequest], num_blocks: int) -> Bound:
    return find_bound(requests, msgspec.structs.replace(DYNAMO_MOCKER, num_blocks=num_blocks, block_size=64), 1)


def test_without_a_limit_all_that_was_seen_is_reused_but_the_last_token() -> None:
    found = bound([request(1, 2), request(1, 2), request(1, 3)], 10_000)
    assert found.infinite == (0 + 960 + 512) / (3 * 1024)
    assert found.clairvoyant == found.infinite


def test_a_clairvoyant_cache_keeps_what_comes_again() -> None:
    requests = [request(1, 2), request(8, 9), request(1, 2)]
    # Room for two trace blocks (16 blocks of 64): whoever keeps the latest has nothing when it counts.
    assert bound(requests, 16).clairvoyant == 960 / 3072
    assert bound(requests, 8).clairvoyant == 512 / 3072
    assert bound(requests, 0).clairvoyant == 0


def test_no_cache_does_better_than_the_clairvoyant_one() -> None:
    chains = [(1, 2, 3), (4, 5), (1, 2, 6), (4, 7), (1, 8), (4, 5), (1, 2, 3)]
    requests = [request(*chain) for chain in chains]
    bounds = [bound(requests, 8 * size).clairvoyant for size in range(9)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == bound(requests, 8).infinite


def test_the_earliest_first_token_is_that_of_what_no_cache_saves() -> None:
    ttft = bound([request(1, 2), request(1, 2)], 16).ttft
    assert ttft.max_s == prefill_alone_s(DYNAMO_MOCKER, 1024)
    assert ttft.p50_s == prefill_alone_s(DYNAMO_MOCKER, 1024 - 960)


def test_a_prompt_alone_is_computed_chunk_by_chunk() -> None:
    whole, rest = step_seconds(DYNAMO_MOCKER, 8192, 0, 0), step_seconds(DYNAMO_MOCKER, 100, 0, 0)
    assert prefill_alone_s(DYNAMO_MOCKER, 2 * 8192) == 2 * whole
    assert prefill_alone_s(DYNAMO_MOCKER, 2 * 8192 + 100) == pytest.approx(2 * whole + rest)
