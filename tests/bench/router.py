"""I/O. Measure what routing costs: CPU of a whole router process per request: `python -m tests.bench.router`.

A real broker, a real router process, and 64 workers played by this process: they report load with step samples every
250 ms, take what comes into their lanes, and tell the blocks of it. Prompts of 4,096 tokens share prefixes in groups.
They come at one rate after another; at rate 0 there is a backlog, of which the router takes as much as it can: a
message that comes alone costs several times what it costs among others. The workers are so fast that they never are
what limits. Beside it, at the same time, a process that only moves the same requests from `REQ` to lanes: what the way
through the broker costs on this machine, without any decision. `--beside DIR` measures the router of another checkout,
too.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from bus.codec import codec, encode
from bus.config import BusConfig
from bus.connection import open_bus
from bus.messages.base import pack_u32, pack_u64
from bus.messages.fleet import StepSample, WorkerCard, WorkerLoad
from bus.messages.inference import GenerateJob, Stopping
from bus.messages.kv import BlocksStored, KvBatch
from bus.protocol import Bus, ConsumerSpec, Delivery
from bus.server import run_server
from bus.subjects import Subjects
from components.bench.cpu import read_usage
from kv_events.hashing import packed_block_hashes, salt_hash
from tests.bench.processes import started

MODEL = "m"
REPORT_S = 0.25
NUM_GROUPS = 200
SHARED_TOKENS = 3072
WARMUP = 600
"""Requests before anything is measured: all processes are up, and most groups have a home."""
WARMUP_RATE = 200.0
BACKLOG_STEP = 64
"""Requests of a backlog that are sent before the broker must have taken them."""


Made = tuple[int, bytes, list[int]]
"""Group, prompt, and hashes of its blocks."""


class Result(msgspec.Struct, frozen=True):
    """CPU of one process, and what it decided."""

    side: str
    rate: float
    """Requests per second that were sent; 0: as many as it took."""
    requests: int
    taken_per_s: float
    request_us: float
    """CPU per request beyond what the process uses without requests."""
    broker_us: float
    """CPU of its nats-server per request, for all that this bench does."""
    background_share: float
    """Part of one CPU that hearing the workers' reports takes."""
    cached_part: float
    """Of the prompts, as the workers' lanes saw them: a request came where its group was before."""


class Side:
    """One process under measurement, its workers and its broker."""

    def __init__(self, name: str, players: "Players", pid: int, broker_pid: int) -> None:
        self._name = name
        self.players = players
        self._pids = (pid, broker_pid)
        self._background_share = 0.0
        self.mark()

    def mark(self) -> None:
        """Begin to measure."""
        self._since = self._read()
        self._hits, self._taken = self.players.hits, self.players.taken

    def note_background(self) -> None:
        """What the process used since the last mark, it uses without requests."""
        seconds, cpu_s, _ = self._read_since()
        self._background_share = cpu_s / seconds

    def measure(self, rate: float) -> Result:
        """Return what was seen since the last mark."""
        seconds, cpu_s, broker_s = self._read_since()
        count = self.players.taken - self._taken
        return Result(
            side=self._name,
            rate=rate,
            requests=count,
            taken_per_s=count / (self.players.taken_at - self._since[0]),
            request_us=1e6 * (cpu_s - self._background_share * seconds) / count,
            broker_us=1e6 * broker_s / count,
            background_share=self._background_share,
            cached_part=(self.players.hits - self._hits) / count,
        )

    def pause(self) -> None:
        """Let the process do nothing, so that requests pile up."""
        os.kill(self._pids[0], signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pids[0], signal.SIGCONT)

    def _read_since(self) -> tuple[float, float, float]:
        seconds, cpu_s, broker_s = (now - then for now, then in zip(self._read(), self._since, strict=True))
        return seconds, cpu_s, broker_s

    def _read(self) -> tuple[float, float, float]:
        pid, broker_pid = self._pids
        return time.monotonic(), read_usage(pid).cpu_s, read_usage(broker_pid).cpu_s


class Players:
    """All workers, on one connection."""

    def __init__(self, bus: Bus, options: argparse.Namespace) -> None:
        self._bus = bus
        self._options = options
        self._seqs: dict[str, int] = {}
        self._homes: set[tuple[str, int]] = set()
        self._jobs = codec(GenerateJob)
        self.names = [f"w-{number}" for number in range(options.workers)]
        self.hits = 0
        self.sent = 0
        self.taken = 0
        self.taken_at = 0.0
        self._hashes: dict[int, list[int]] = {}

    async def join(self) -> None:
        bucket = self._bus.bucket("REG")
        for name in self.names:
            card = WorkerCard(
                worker=name,
                model=MODEL,
                engine="player",
                roles=["both"],
                slots=512,
                block_size=self._options.block_size,
                num_blocks=100_000,
                max_model_len=131_072,
                host="h",
                pid=os.getpid(),
                version="0",
                started_at=0.0,
                max_running=256,
            )
            await bucket.put(f"worker.{name}", encode(card), ttl_s=600)

    async def report(self) -> None:
        """Report every 250 ms, as workers do that step 40 times a second."""
        steps = [StepSample(0.002 + 2e-6 * (512 * (n % 2)), 512 * (n % 2), 8, 32_000) for n in range(10)]
        while True:
            for name in self.names:
                load = WorkerLoad(
                    worker=name,
                    model=MODEL,
                    running=8,
                    waiting=0,
                    free_blocks=90_000,
                    num_blocks=100_000,
                    prefill_tokens=0,
                    step_s=0.002,
                    at=time.time(),
                    steps=steps,
                )
                self._bus.publish(self._bus.subjects.load(MODEL, name), encode(load))
            await anyio.sleep(REPORT_S)

    async def flush(self) -> None:
        """Wait until the broker has all that was sent."""
        await self._bus.flush()

    async def wait_taken(self) -> None:
        """Wait until all that was sent came to a worker."""
        with anyio.fail_after(60):
            while self.taken < self.sent:  # noqa: ASYNC110 - deliveries are counted
                await anyio.sleep(0.02)

    def send(self, group: int, prompt: bytes, hashes: list[int]) -> None:
        ticket, self.sent = self.sent, self.sent + 1
        self._hashes[ticket] = hashes
        job = GenerateJob(
            request_id=f"q-{ticket}",
            frontend="f-1",
            ticket=ticket,
            model=MODEL,
            prompt=prompt,
            tenant=str(group),
            stopping=Stopping(max_tokens=64),
        )
        self._bus.publish(self._bus.subjects.req(MODEL, "standard", job.tenant), encode(job))

    def take(self, delivery: Delivery) -> None:
        job = self._jobs.decode(delivery.payload)
        delivery.ack()
        hashes = self._hashes.pop(job.ticket, None)
        if hashes is None:
            return  # delivered again, as this process was slow
        self.taken += 1
        self.taken_at = time.monotonic()
        worker = self._bus.subjects.parse(delivery.subject).fields[2]
        group = int(job.tenant)
        held = SHARED_TOKENS // self._options.block_size if (worker, group) in self._homes else 0
        self.hits += held > 0
        self._homes.add((worker, group))
        seq = self._seqs.get(worker, 0)
        self._seqs[worker] = seq + 1
        parent = hashes[held - 1] if held else 0
        event = msgspec.Raw(encode(BlocksStored(parent, pack_u64(hashes[held:]))))
        self._bus.publish(self._bus.subjects.kv(MODEL, worker), encode(KvBatch(worker, 1, seq, [event])))


class Prompts:
    """Made before they are sent, as that takes longer than routing."""

    def __init__(self, num_tokens: int, block_size: int) -> None:
        self._rng = random.Random(1)
        self._block_size = block_size
        self._own_tokens = num_tokens - SHARED_TOKENS
        self._shared = [pack_u32(self._rng.choices(range(50_000), k=SHARED_TOKENS)) for _ in range(NUM_GROUPS)]

    async def make_soon(self, count: int) -> list[Made]:
        """Return so many, made in a thread: workers that do not report meanwhile would count as dead."""
        return await anyio.to_thread.run_sync(self._make, count)

    def _make(self, count: int) -> list[Made]:
        root, made = salt_hash(MODEL), []
        for _ in range(count):
            group = self._rng.randrange(NUM_GROUPS)
            prompt = self._shared[group] + pack_u32(self._rng.choices(range(50_000), k=self._own_tokens))
            made.append((group, prompt, packed_block_hashes(prompt, self._block_size, root)))
        return made


async def drive(sides: list[Side], options: argparse.Namespace) -> AsyncIterator[Result]:
    """Measure at one rate after another."""
    prompts = Prompts(options.tokens, options.block_size)
    await send_all(sides, await prompts.make_soon(WARMUP), WARMUP_RATE)
    for side in sides:
        side.mark()
    await anyio.sleep(options.seconds / 2)
    for side in sides:
        side.note_background()
    for rate in options.rates:
        if rate:
            made = await prompts.make_soon(int(options.seconds * rate))
            await send_all(sides, made, rate)
            for side in sides:
                yield side.measure(rate)
        else:
            made = await prompts.make_soon(options.backlog)
            for side in sides:
                await send_backlog(side, made)
                yield side.measure(rate)


async def send_all(sides: list[Side], made: list[Made], rate: float) -> None:
    """Send the same requests to all sides in turn: whatever slows the machine down slows all alike."""
    began = time.monotonic()
    for side in sides:
        side.mark()
    for number, one in enumerate(made):
        for place, side in enumerate(sides):
            await anyio.sleep(max(0.0, began + (number + place / len(sides)) / rate - time.monotonic()))
            side.players.send(*one)
    for side in sides:
        await side.players.wait_taken()


async def send_backlog(side: Side, made: list[Made]) -> None:
    """Let requests pile up in the broker, and then the process take them."""
    side.pause()
    for number, one in enumerate(made):
        side.players.send(*one)
        if number % BACKLOG_STEP == 0:
            await side.players.flush()
    await side.players.flush()
    side.mark()
    side.resume()
    await side.players.wait_taken()


async def forward(url: str) -> None:
    """Move requests to lanes in turn: pull, append, ack."""
    async with open_bus(BusConfig(url=url), Subjects(), name="forwarder") as bus:
        count = 0

        def on_delivery(delivery: Delivery) -> None:
            nonlocal count
            count += 1
            subject = bus.subjects.work(MODEL, "both", f"w-{count % 64}", "standard")
            bus.append_soon(subject, delivery.payload, lambda _: delivery.ack())
            pull.grant(256)

        spec = ConsumerSpec(
            stream="REQ", name="req-m-standard", filter_subject=bus.subjects.req(MODEL, "standard", "*")
        )
        async with bus.pull(spec, on_delivery) as pull:
            pull.grant(256)
            await anyio.sleep_forever()


@asynccontextmanager
async def started_side(name: str, options: argparse.Namespace) -> AsyncIterator[Side]:
    """Start the router, the forwarder, or the router of another checkout."""
    root = options.beside if name == "other" else Path(__file__).parents[2]
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        server = await stack.enter_async_context(run_server(f"{directory}/nats"))
        assert server.process is not None
        bus = await stack.enter_async_context(open_bus(BusConfig(url=server.url), Subjects(), name="players"))
        await bus.ensure()
        players = Players(bus, options)
        await players.join()
        command = [sys.executable, "-P", "-m", "components.cli", "router", "--set", f"bus.url={server.url}"]
        if name == "forwarder":
            command = [sys.executable, "-P", "-m", "tests.bench.router", "--forward", server.url]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        process = stack.enter_context(started(command, environment, Path(directory) / f"{name}.log"))
        spec = ConsumerSpec(stream="WORK", name="all", filter_subject=bus.subjects.work(MODEL, "both", "*", "*"))
        pull = await stack.enter_async_context(bus.pull(spec, players.take))
        pull.grant(100_000)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(players.report)
        yield Side(name, players, process.pid, server.process.pid)
        tasks.cancel_scope.cancel()


async def run(options: argparse.Namespace) -> None:
    names = ["router", *(["other"] if options.beside else []), *([] if options.only_router else ["forwarder"])]
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(started_side(name, options)) for name in names]
        async for result in drive(sides, options):
            print(msgspec.json.encode(result).decode(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[200.0, 1000.0, 0.0], help="requests per second, for each process"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="at each rate")
    parser.add_argument("--backlog", type=int, default=6000, help="requests at rate 0")
    parser.add_argument("--only-router", action="store_true", help="leave the forwarder out")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="measure the router of another checkout, too")
    parser.add_argument("--forward", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forward:
        anyio.run(forward, options.forward, backend_options={"use_uvloop": True})
        return
    anyio.run(run, options, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
