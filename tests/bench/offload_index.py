"""Memory and time of a tier's books for many blocks: `python -m tests.bench.offload_index --blocks 10000000`."""

import argparse
import random
import resource
import time

from offload.key import BlockKey, Space, space_of
from offload.slots import Slots
from offload.tier import ORDINARY, Presence

CHAIN = 64
NUM_LOOKUPS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--policy", default="lru", choices=("lru", "s3fifo"))
    arguments = parser.parse_args()
    before = _resident_bytes()
    slots = Slots(arguments.blocks, policy=arguments.policy, medium="disk", is_selective=True)
    space, rng = space_of("model"), random.Random(0)
    started = time.process_time()
    for first in range(0, arguments.blocks, CHAIN):
        _store(slots, [_key(space, number) for number in range(first, min(first + CHAIN, arguments.blocks))])
    filled_s = time.process_time() - started
    held = _resident_bytes() - before
    starts = [rng.randrange(arguments.blocks - CHAIN) for _ in range(NUM_LOOKUPS)]
    chains = [[_key(space, number) for number in range(start, start + CHAIN)] for start in starts]
    started = time.process_time()
    hits = sum([slots.lookup(chain).count(Presence.HIT) for chain in chains])
    lookup_s = time.process_time() - started
    absent = [[_key(space, number + arguments.blocks) for number in range(start, start + CHAIN)] for start in starts]
    started = time.process_time()
    misses = sum([slots.lookup(chain).count(Presence.MISS) for chain in absent])
    miss_s = time.process_time() - started
    started = time.process_time()
    for chain in absent:
        _store(slots, chain)
    evict_s = time.process_time() - started
    count = NUM_LOOKUPS * CHAIN
    assert hits == misses == count
    print(
        f"{arguments.blocks} blocks, {arguments.policy}: {held / 2**20:.0f} MiB ({held / arguments.blocks:.0f} B each)"
    )
    print(f"store {filled_s / arguments.blocks * 1e6:.2f} us, with eviction {evict_s / count * 1e6:.2f} us a block")
    print(f"lookup {lookup_s / count * 1e6:.2f} us a hit, {miss_s / count * 1e6:.2f} us a miss (chains of {CHAIN})")


def _key(space: Space, number: int) -> BlockKey:
    return BlockKey(space, number * 0x9E3779B97F4A7C15 & 2**64 - 1)


def _store(slots: Slots, keys: list[BlockKey]) -> None:
    taken = [slots.prepare_store(key, 0, ORDINARY, 0.0) for key in keys]
    slots.complete_store([slot for slot in taken if slot is not None])
    slots.take_events()


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
