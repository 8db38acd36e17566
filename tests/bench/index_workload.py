"""Pure. What the prefix index and its peer are measured with: events of workers, and queries between them."""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

from xxhash import xxh3_64_intdigest

PARTS = 8
"""Blocks of 64 tokens in each of the trace's blocks of 512."""
CAPACITY = 16_384
SLICE = 256

Event = tuple[str, int, int, list[int]]
"""("stored" or "removed", worker, parent, block hashes)."""


@dataclass(slots=True)
class Slice:
    """Events to apply, and then chains to look up."""

    events: list[Event] = field(default_factory=list)
    queries: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    workers: int
    slices: list[Slice]
    rounds: int = 1
    """How often each query is asked."""


def read_chains(lines: Iterable[str]) -> Iterator[list[int]]:
    """Yield the block hashes of each request of a trace: its ids stand for whole prefixes, as chained hashes do."""
    for line in lines:
        yield [
            xxh3_64_intdigest(b"%d.%d" % (block, part))
            for block in json.loads(line)["hash_ids"]
            for part in range(PARTS)
        ]


def replay(chains: Iterable[list[int]], workers: int) -> Workload:
    """Send each request to the next worker; those hold `CAPACITY` blocks and evict the ends of the oldest chains."""
    held: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(workers)]
    slices = [Slice()]
    for number, chain in enumerate(chains):
        if len(slices[-1].queries) == SLICE:
            slices.append(Slice())
        events, worker = slices[-1].events, number % workers
        blocks = held[worker]
        known = next((at for at, block in enumerate(chain) if block not in blocks), len(chain))
        for block in reversed(chain):
            blocks[block] = None
            blocks.move_to_end(block)
        evicted = [blocks.popitem(last=False)[0] for _ in range(len(blocks) - CAPACITY)]
        if evicted:
            events.append(("removed", worker, 0, evicted))
        if known < len(chain):
            events.append(("stored", worker, chain[known - 1] if known else 0, chain[known:]))
        slices[-1].queries.append(chain)
    return Workload(f"trace, {workers} workers of {CAPACITY} blocks", workers, slices)


def one_chain(blocks: int, workers: int, *, ragged: bool) -> Workload:
    """Let all workers hold one chain: whole, or each up to another length."""
    random = Random(blocks)
    chain = [random.getrandbits(64) for _ in range(blocks)]
    lengths = [random.randint(1, blocks) if ragged else blocks for _ in range(workers)]
    events: list[Event] = [("stored", worker, 0, chain[:length]) for worker, length in enumerate(lengths)]
    name = f"{blocks} blocks x {workers} workers" + (", all lengths differ" if ragged else "")
    return Workload(name, workers, [Slice(events, [chain])], rounds=500)
