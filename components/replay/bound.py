"""Pure. The best that any router could do with a trace: how much reuse, and the first token how early."""

import sys
from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import msgspec

from bus.config import MockConfig
from components.engines.mock.timing import step_seconds
from components.replay.report import Latency, compute_latency
from components.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest


class Bound(msgspec.Struct, frozen=True):
    """The largest share of prompt tokens that any router and any eviction could find in a prefix cache."""

    infinite: float
    """With caches that never evict and one cache that everybody shares."""
    clairvoyant: float
    """With one shared cache of all workers' blocks that knows the future: evicts what is needed last, or never takes
    it in (Belady). Output tokens and running sequences take no room in it, so it is more than can be had."""
    ttft: Latency
    """Of prompts that find what the clairvoyant cache holds and compute the rest alone on an idle engine. The far
    percentiles are those of the longest prompts, whatever the router does."""


def find_bound(requests: Sequence[TraceRequest], engine: MockConfig, num_workers: int) -> Bound:
    """Compute the bounds for workers with this engine.

    Counted in whole blocks of the engine, and at least one token of each prompt is computed, as engines do.
    """
    total = sum(request.input_length for request in requests)
    capacity = num_workers * engine.num_blocks * engine.block_size // TRACE_BLOCK_TOKENS
    infinite = _find_hits(requests, engine.block_size, capacity=sys.maxsize)
    clairvoyant = _find_hits(requests, engine.block_size, capacity=capacity)
    uncached = [request.input_length - hits for request, hits in zip(requests, clairvoyant, strict=True)]
    ttft = compute_latency(prefill_alone_s(engine, tokens) for tokens in uncached)
    return Bound(sum(infinite) / total, sum(clairvoyant) / total, ttft)


def prefill_alone_s(engine: MockConfig, num_tokens: int) -> float:
    """Return how long an engine takes that has nothing else to do, chunk by chunk."""
    full, rest = divmod(num_tokens, engine.max_batch_tokens)
    return full * step_seconds(engine, engine.max_batch_tokens, 0, 0) + (
        step_seconds(engine, rest, 0, 0) if rest else 0
    )


def _find_hits(requests: Sequence[TraceRequest], block_size: int, *, capacity: int) -> list[int]:
    """Return the tokens that each request finds in a Belady cache of `capacity` trace blocks.

    Trace ids are chained (an id implies those before it), so each id's next use is never before its child's: keeping
    what is needed soonest keeps whole prefixes.
    """
    next_uses = _next_uses(requests)
    cached: dict[int, int] = {}
    farthest: list[tuple[int, int, int]] = []  # (-next use, -position in the prompt, id), stale entries included
    hits: list[int] = []
    for request, uses in zip(requests, next_uses, strict=True):
        usable = (request.input_length - 1) // block_size * block_size
        matched = 0
        for hash_id in request.hash_ids:
            if hash_id not in cached:
                break
            matched += TRACE_BLOCK_TOKENS
        hits.append(min(matched, usable))
        for position, (hash_id, next_use) in enumerate(zip(request.hash_ids, uses, strict=True)):
            cached[hash_id] = next_use
            heappush(farthest, (-next_use, -position, hash_id))
        while len(cached) > capacity:
            next_use, _, hash_id = heappop(farthest)
            if cached.get(hash_id) == -next_use:
                del cached[hash_id]
    return hits


def _next_uses(requests: Sequence[TraceRequest]) -> Iterator["array[int]"]:
    """Yield for each request when each of its ids is used again (number of the request; never: their count)."""
    never = len(requests)
    upcoming: dict[int, int] = {}
    reversed_uses: list[array[int]] = []
    for number in range(never - 1, -1, -1):
        ids = requests[number].hash_ids
        reversed_uses.append(array("q", [upcoming.get(hash_id, never) for hash_id in ids]))
        upcoming.update(dict.fromkeys(ids, number))
    return reversed(reversed_uses)
