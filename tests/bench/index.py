"""I/O. Measure the prefix index beside Dynamo's radix tree: `python -m tests.bench.index TRACE --peer PYTHON`.

Both get the same events and queries, one after the other, from Python, events as bytes (JSON there, msgpack here: the
only door of each), and must find the same overlaps. Counts CPU time; `--memory` also the memory of ten million blocks.
"""

import argparse
import gc
import json
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from bus.messages.base import pack_u64
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent
from kv_events.index import PrefixIndex
from tests.bench.index_workload import Event, Workload, one_chain, read_chains, replay

DECODER = msgspec.msgpack.Decoder(list[KvEvent])
PEER_LIMIT_S = 600.0
MEMORY_BLOCKS = 10_000_000
CHAIN = 100


class Measured(msgspec.Struct, frozen=True):
    encode_s: float
    """Making the bytes of the events, in Python."""
    apply_s: float
    match_s: float
    matched: int
    """Sum of all overlaps found, over workers and queries."""


def encode(event: Event) -> bytes:
    kind, _, parent, blocks = event
    column = pack_u64(blocks)
    return msgspec.msgpack.encode([BlocksStored(parent, column) if kind == "stored" else BlocksRemoved(column)])


def measure(workload: Workload) -> Measured:
    index = PrefixIndex()
    encode_s = apply_s = match_s = 0.0
    matched = 0
    for piece in workload.slices:
        start = time.process_time()
        encoded = [(f"w-{event[1]}", encode(event)) for event in piece.events]
        encode_s += time.process_time() - start
        start = time.process_time()
        for worker, data in encoded:
            index.apply(worker, DECODER.decode(data))
        apply_s += time.process_time() - start
        start = time.process_time()
        for _ in range(workload.rounds):
            found = [index.match_device(chain) for chain in piece.queries]
        match_s += time.process_time() - start
        matched += sum(sum(lengths.values()) for lengths in found)
    return Measured(encode_s, apply_s, match_s, matched)


def measure_peer(python: Path, workloads: list[Workload]) -> list[Measured]:
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        plain = [([(p.events, p.queries) for p in load.slices], load.rounds) for load in workloads]
        pickle.dump(plain, file)
        file.flush()
        command: list[str | Path] = [python, "-P", Path(__file__).with_name("index_peer.py"), file.name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=PEER_LIMIT_S)
    return msgspec.json.decode(done.stdout, type=list[Measured])


def describe(workload: Workload, measured: Measured) -> tuple[float, float, float]:
    """Return microseconds a query, million blocks a second, and the same with the making of the bytes."""
    queries = sum(len(piece.queries) for piece in workload.slices) * workload.rounds
    blocks = sum(len(event[3]) for piece in workload.slices for event in piece.events)
    return (
        measured.match_s / queries * 1e6,
        blocks / measured.apply_s / 1e6,
        blocks / (measured.apply_s + measured.encode_s) / 1e6,
    )


def compare(workloads: list[Workload], peer: Path | None) -> None:
    theirs = measure_peer(peer, workloads) if peer else [None] * len(workloads)
    for workload, other in zip(workloads, theirs, strict=True):
        ours = measure(workload)
        query_us, rate, whole_rate = describe(workload, ours)
        print(workload.name)
        print(f"  Busway {query_us:.1f} us a query; M blocks/s: {rate:.2f} from bytes, {whole_rate:.2f} from lists")
        if other is None:
            continue
        other_us, other_rate, other_whole_rate = describe(workload, other)
        print(f"  Dynamo {other_us:.1f} us a query; M blocks/s: {other_rate:.2f}, {other_whole_rate:.2f}")
        print(f"  ratios {other_us / query_us:.1f}; {rate / other_rate:.2f}, {whole_rate / other_whole_rate:.2f}")
        if other.matched != ours.matched:
            raise SystemExit(f"the overlaps differ: {ours.matched} blocks here, {other.matched} there")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fill(workers: int) -> None:
    """Hold `MEMORY_BLOCKS` blocks, once each; replace a fifth, remove all workers; print the memory in MiB as JSON."""
    index, new, old = PrefixIndex(), random.Random(workers), random.Random(workers)
    chains = MEMORY_BLOCKS // CHAIN
    before = resident_bytes()

    def store(number: int) -> None:
        index.apply(f"w-{number % workers}", [BlocksStored(0, new.randbytes(8 * CHAIN))])

    def grown_mib() -> int:
        gc.collect()
        return (resident_bytes() - before) >> 20

    for number in range(chains):
        store(number)
    full = grown_mib()
    for number in range(chains // 5):
        index.apply(f"w-{number % workers}", [BlocksRemoved(old.randbytes(8 * CHAIN))])
        store(number)
    turned_over = grown_mib()
    slowest_s = 0.0
    for worker in index.workers():
        start = time.process_time()
        index.remove_worker(worker)
        slowest_s = max(slowest_s, time.process_time() - start)
    print(json.dumps({"full": full, "turned_over": turned_over, "empty": grown_mib(), "slowest_s": slowest_s}))


def measure_memory() -> None:
    for workers in (8, 64):
        command = [sys.executable, "-m", "tests.bench.index", "--fill", str(workers)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=PEER_LIMIT_S).stdout)
        sizes = f"{found['full']} MiB, after replacing a fifth {found['turned_over']} MiB, emptied {found['empty']} MiB"
        print(f"{MEMORY_BLOCKS / 1e6:.0f} M blocks, {workers} workers: {sizes}")
        print(f"  slowest removal of a worker: {found['slowest_s'] * 1e3:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?", help="a trace in Mooncake's format")
    parser.add_argument("--peer", type=Path, help="Python with ai-dynamo-runtime")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fill:
        fill(args.fill)
        return
    workloads = [one_chain(2048, 64, ragged=False), one_chain(2048, 64, ragged=True)]
    if args.trace:
        chains = list(read_chains(args.trace.read_text().splitlines()))
        workloads += [replay(chains, 8), replay(chains, 64)]
    compare(workloads, args.peer)
    if args.memory:
        measure_memory()


if __name__ == "__main__":
    main()
