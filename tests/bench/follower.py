"""I/O. Measure how fast a new router knows all blocks: `python -m tests.bench.follower --workers 64 --blocks 16384`.

One process plays the workers (real logs, real publishers, no engines) on a real nats-server, another one is the new
router: it follows, and stops the clock when its index equals every worker's digest. With `--lost` the stream is empty,
and everything comes from the workers.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack

import anyio
import structlog

from bus.codec import encode
from bus.config import BusConfig
from bus.connection import NatsBus, open_bus
from bus.messages.base import pack_u64
from bus.messages.fleet import WorkerCard, WorkerLoad
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent
from bus.registry import keep_card
from bus.server import run_server
from bus.subjects import Subjects
from bus.typed import subscribe_typed
from components.worker.events import EventPublisher
from kv_events.follower import follow
from kv_events.index import PrefixIndex
from kv_events.log import KvLog

MODEL = "m"
PATIENCE_S = 60.0


class Player:
    """One worker that has served prompts until its cache was full, and then as many blocks again."""

    def __init__(self, bus: NatsBus, number: int, num_blocks: int) -> None:
        self.worker = f"w-{number}"
        self.bus = bus
        self.log = KvLog(self.worker, time.time_ns())
        self.events = EventPublisher(bus, bus.subjects.kv(MODEL, self.worker), self.log)
        self._rng = random.Random(number)
        self._num_blocks = num_blocks
        self._held: list[list[int]] = []

    async def fill(self, *, is_lost: bool) -> None:
        """Publish as a worker does: a batch for each step, with the prompt that came and the blocks that had to go."""
        num_stored = num_held = 0
        while num_stored < 2 * self._num_blocks:
            chain = [self._rng.getrandbits(64) for _ in range(self._rng.randrange(8, 129))]
            events: list[KvEvent] = [BlocksStored(0, pack_u64(chain))]
            num_stored += len(chain)
            num_held += len(chain)
            self._held.append(chain)
            gone: list[int] = []
            while num_held > self._num_blocks:
                old = self._held.pop(0)
                num_held -= len(old)
                gone += old
            if gone:
                events.append(BlocksRemoved(pack_u64(gone)))
            if is_lost:
                self.log.append(events)
            else:
                self.events.publish(events)
            await anyio.lowlevel.checkpoint()

    def beat(self) -> None:
        load = WorkerLoad(
            worker=self.worker,
            model=MODEL,
            running=0,
            waiting=0,
            free_blocks=0,
            num_blocks=self._num_blocks,
            prefill_tokens=0,
            step_s=0.0,
            at=time.time(),
            kv_epoch=self.log.epoch,
            kv_seq=self.log.next_seq,
            kv_count=self.log.num_blocks,
            kv_xor=self.log.xor,
        )
        self.bus.publish(self.bus.subjects.load(MODEL, self.worker), encode(load))


async def play(url: str, num_workers: int, num_blocks: int, *, is_lost: bool) -> None:
    """Be the workers; print a line when everything is published."""
    async with open_bus(BusConfig(url=url), Subjects(), name="workers") as bus, AsyncExitStack() as stack:
        await bus.ensure()
        players = [Player(bus, number, num_blocks) for number in range(num_workers)]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for player in players:
            card = WorkerCard(
                worker=player.worker,
                model=MODEL,
                engine="none",
                roles=["both"],
                slots=1,
                block_size=16,
                num_blocks=num_blocks,
                max_model_len=2**20,
                host="h",
                pid=1,
                version="0",
                started_at=0.0,
            )
            await stack.enter_async_context(keep_card(bus, f"worker.{player.worker}", card))
            tasks.start_soon(player.events.run)
            await player.fill(is_lost=is_lost)
            await bus.flush(timeout_s=30)
        print("ready", sum(player.log.num_blocks for player in players), flush=True)
        while True:
            for player in players:
                player.beat()
            await anyio.sleep(0.25)


async def be_router(url: str, num_workers: int) -> None:
    """Follow until everything is known."""
    digests: dict[str, tuple[int, int]] = {}
    async with open_bus(BusConfig(url=url), Subjects(), name="router") as bus:
        subscribe_typed(
            bus,
            bus.subjects.load(MODEL, "*"),
            WorkerLoad,
            lambda load, _: digests.__setitem__(load.worker, (load.kv_count, load.kv_xor)),
        )
        with anyio.fail_after(PATIENCE_S):
            while len(digests) < num_workers:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        index = PrefixIndex()
        began_at, began_cpu_s = time.monotonic(), time.process_time()
        longest_s, last = 0.0, began_at
        async with follow(bus, MODEL, index) as follower:
            subscribe_typed(bus, bus.subjects.load(MODEL, "*"), WorkerLoad, lambda load, _: follower.hear(load))
            with anyio.fail_after(PATIENCE_S):
                while not all(index.digest(worker) == digest for worker, digest in digests.items()):
                    await anyio.sleep(0.001)
                    now = time.monotonic()
                    longest_s, last = max(longest_s, now - last), now
            print(
                f"known: {len(index):,} blocks of {num_workers} workers after {time.monotonic() - began_at:.3f} s, "
                f"CPU {time.process_time() - began_cpu_s:.3f} s, longest turn {longest_s:.3f} s, "
                f"replayed {not follower.is_replaying}, "
                f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
            )


async def measure(num_workers: int, num_blocks: int, *, is_lost: bool) -> None:
    with tempfile.TemporaryDirectory() as state_dir:
        async with run_server(state_dir) as server:
            command = [sys.executable, "-m", "tests.bench.follower", "--url", server.url]
            sizes = ["--workers", str(num_workers), "--blocks", str(num_blocks), *(["--lost"] if is_lost else [])]
            workers = await anyio.open_process([*command, "--as", "workers", *sizes], stderr=subprocess.DEVNULL)
            async with workers:
                assert workers.stdout is not None
                print((await workers.stdout.receive()).decode().strip(), flush=True)
                router = await anyio.run_process([*command, "--as", "router", *sizes], stderr=None)
                print(router.stdout.decode().strip())
                workers.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=16_384, help="that each worker holds")
    parser.add_argument("--lost", action="store_true", help="the stream lost everything")
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--as", dest="part", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    options = {"use_uvloop": True}
    if given.part == "workers":
        anyio.run(
            lambda: play(given.url, given.workers, given.blocks, is_lost=given.lost),
            backend_options=options,
        )
    elif given.part == "router":
        anyio.run(be_router, given.url, given.workers, backend_options=options)
    else:
        anyio.run(lambda: measure(given.workers, given.blocks, is_lost=given.lost), backend_options=options)


if __name__ == "__main__":
    main()
