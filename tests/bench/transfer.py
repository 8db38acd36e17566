"""I/O. Measure KV blocks between two processes: `python -m tests.bench.transfer --transport nixl`.

With `network`, NIXL copies the blocks as it does between hosts; with `nixl`, workers notice that they are on one.
Blocks are read into random places of a pool, over the whole path that a worker takes (offer, open, read, seal). Beside
it, in turn, as many rows are copied within this process: what one core of this machine can do. Rates are by the clock
and by CPU time, which a busy machine leaves nearly alone; shares are read over copy.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time

import anyio
import structlog

from bus.codec import codec
from bus.messages.transfer import BlockOffer
from components.engines.exchange import BlockMemory
from components.transfer import Transfer, open_transfer
from tests.integration.components.transfer.conftest import own_transport
from tests.integration.components.transfer.peer import content, make_memory

POOL_BYTES = 128 * 2**20
IDLE_S = 5.0
PEER = "tests.integration.components.transfer.peer"


class Source:
    """The other process."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def ask(self, *words: object) -> object:
        """Write a line and return the last word of the answer, skipping what it tells unasked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit("the source process ended")
            if line.startswith(b"[") and json.loads(line)[0] == words[0]:
                return json.loads(line)[-1]

    def offer(self, num_blocks: int) -> BlockOffer:
        """Return an offer of its first blocks."""
        return codec(BlockOffer).decode(bytes.fromhex(str(self.ask("offer", 0, num_blocks))))

    def cpu_s(self) -> float:
        """Return the CPU time that it used."""
        return float(str(self.ask("cpu")))


class Watch:
    """Seconds by the clock and of CPU since it was made."""

    def __init__(self) -> None:
        self._at, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return both."""
        return time.perf_counter() - self._at, time.process_time() - self._cpu_s


def copy_rows(source: BlockMemory, target: BlockMemory, theirs: list[int], ours: list[int]) -> tuple[float, float]:
    """Return the seconds that copying rows within this process takes."""
    watch = Watch()
    for their, our in zip(theirs, ours, strict=True):
        target.row(our)[:] = source.row(their)
    return watch.read()


async def measure_rate(
    transfer: Transfer, source: Source, memory: BlockMemory, num_blocks: int, rounds: int
) -> dict[str, float]:
    """Read all blocks of offers, in turn with copies within the process; return GB/s and CPU."""
    other = make_memory(memory.num_blocks, memory.block_bytes)
    assert other.buffer is not None
    other.buffer[:] = b"\1" * len(other.buffer)
    dice = random.Random(1)
    copies, reads, theirs_s = [], [], []
    for turn in range(rounds + 1):
        theirs, ours = (dice.sample(range(memory.num_blocks), num_blocks) for _ in range(2))
        copied = copy_rows(other, memory, theirs, ours)
        offer = source.offer(num_blocks)
        async with transfer.open(offer) as opened:
            source_s, watch = source.cpu_s(), Watch()
            await opened.read(0, ours)
            read = watch.read()
            source_s = source.cpu_s() - source_s
        for at, our in enumerate(ours):
            if memory.row(our) != content(at, memory.block_bytes):
                raise SystemExit(f"block {at} is wrong")
        if turn:  # the first one touches pages and connects
            copies.append(copied)
            reads.append(read)
            theirs_s.append(source_s)
    gigabytes = num_blocks * memory.block_bytes / 1e9
    copy_s, copy_cpu_s = map(statistics.median, zip(*copies, strict=True))
    read_s, read_cpu_s = map(statistics.median, zip(*reads, strict=True))
    return {
        "copy_gb_s": gigabytes / copy_s,
        "read_gb_s": gigabytes / read_s,
        "share_percent": copy_s / read_s * 100,
        "copy_gb_cpu_s": gigabytes / copy_cpu_s,
        "read_gb_cpu_s": gigabytes / read_cpu_s,
        "share_of_cpu_percent": copy_cpu_s / read_cpu_s * 100,
        "reader_us_per_block": read_cpu_s / num_blocks * 1e6,
        "source_us_per_block": statistics.median(theirs_s) / num_blocks * 1e6,
    }


async def measure_latency(transfer: Transfer, source: Source, num_blocks: int, rounds: int) -> dict[str, float]:
    """Return quantiles of the time for small reads of one open offer, in us."""
    taken = []
    async with transfer.open(source.offer(num_blocks)) as opened:
        for _ in range(rounds):
            begun_at = time.perf_counter()
            await opened.read(0, range(num_blocks))
            taken.append((time.perf_counter() - begun_at) * 1e6)
    cuts = statistics.quantiles(taken[rounds // 10 :], n=100)
    return {"p50_us": cuts[49], "p99_us": cuts[98]}


async def measure_idle(source: Source) -> dict[str, float]:
    """Return the CPU share of both processes while nothing is read, in percent."""
    shares = {}
    for name, offers in (("idle", 0), ("one_lease_out", 1)):
        if offers:
            source.offer(1)
        else:
            await anyio.sleep(2.0)
        ours, theirs = time.process_time(), source.cpu_s()
        await anyio.sleep(IDLE_S)
        shares[f"{name}_source_percent"] = (source.cpu_s() - theirs) / IDLE_S * 100
        shares[f"{name}_reader_percent"] = (time.process_time() - ours) / IDLE_S * 100
    return shares


async def main(transport: str, block_bytes: int, num_blocks: int, rounds: int) -> None:
    """Measure and print."""
    pool_blocks = POOL_BYTES // block_bytes
    memory = make_memory(pool_blocks, block_bytes)
    command = [sys.executable, "-m", PEER, transport, str(pool_blocks), str(block_bytes), "60", "f"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        try:
            assert process.stdout is not None
            while process.stdout.readline() not in (b'["ready"]\n', b""):
                pass
            source = Source(process)
            async with open_transfer(memory, "w-bench", transport=own_transport(transport)) as transfer:
                rate = await measure_rate(transfer, source, memory, num_blocks, rounds)
                show(f"{num_blocks} x {block_bytes} bytes", rate)
                for count in (1, 16, 64):
                    show(f"latency of {count}", await measure_latency(transfer, source, count, 500))
                show("nothing read", await measure_idle(source))
        finally:
            process.kill()


def show(name: str, figures: dict[str, float]) -> None:
    """Print one line."""
    print(f"{name:>24}  " + "  ".join(f"{key}={value:.2f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transport", default="nixl", choices=("nixl", "network", "loopback"))
    parser.add_argument("--block-bytes", type=int, default=64 * 1024)
    parser.add_argument("--blocks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    anyio.run(
        main, given.transport, given.block_bytes, given.blocks, given.rounds, backend_options={"use_uvloop": True}
    )
