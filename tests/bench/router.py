"""I/O. Measure what routing costs: CPU of a whole router process per request: `python -m tests.bench.router`.

A real broker, a real router process, and 64 workers played by this process: they report load with step samples every
250 ms, take what comes into their lanes, and tell the blocks of it. Prompts of 4,096 tokens share prefixes in groups.
Beside it, at the same time, a process that only moves the same requests from `REQ` to lanes: what the way through the
broker costs on this machine, without any decision. `--beside DIR` measures the router of another checkout, too.
"""

import argparse
import os
import random
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
WARMUP = 200
"""Requests before anything is measured: all processes are up, and most groups have a home."""


class Result(msgspec.Struct, frozen=True):
    """CPU of one process, and what it decided."""

    side: str
    requests: int
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
        self.name = name
        self.players = players
        self._pids = (pid, broker_pid)
        self._since = self._read()
        self.background_share = 0.0

    def mark(self) -> tuple[float, float, float]:
        """Return seconds, and seconds of CPU of the process and of its broker, since the last mark."""
        before, self._since = self._since, self._read()
        seconds, cpu_s, broker_s = (now - then for now, then in zip(self._since, before, strict=True))
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
        self._homes: dict[tuple[str, int], bool] = {}
        self._jobs = codec(GenerateJob)
        self.names = [f"w-{number}" for number in range(options.workers)]
        self.hits = 0
        self.taken = 0
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
        steps = [StepSample(0.02 + 2e-5 * (512 * (n % 2)), 512 * (n % 2), 8, 32_000) for n in range(10)]
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
                    step_s=0.02,
                    at=time.time(),
                    steps=steps,
                )
                self._bus.publish(self._bus.subjects.load(MODEL, name), encode(load))
            await anyio.sleep(REPORT_S)

    def send(self, ticket: int, group: int, prompt: bytes, hashes: list[int]) -> None:
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
        worker = self._bus.subjects.parse(delivery.subject).fields[2]
        group = int(job.tenant)
        self.hits += (worker, group) in self._homes
        self._homes[worker, group] = True
        seq = self._seqs.get(worker, 0)
        self._seqs[worker] = seq + 1
        event = msgspec.Raw(encode(BlocksStored(0, pack_u64(hashes))))
        self._bus.publish(self._bus.subjects.kv(MODEL, worker), encode(KvBatch(worker, 1, seq, [event])))


async def drive(sides: list[Side], options: argparse.Namespace) -> list[Result]:
    """Send the same requests to all sides in turn: whatever slows the machine down slows all alike."""
    rng = random.Random(1)
    shared = [pack_u32(rng.choices(range(50_000), k=SHARED_TOKENS)) for _ in range(NUM_GROUPS)]
    root, ticket = salt_hash(MODEL), 0

    async def send(count: int) -> None:
        nonlocal ticket
        began, first = time.monotonic(), ticket
        while ticket < first + count:
            group = rng.randrange(NUM_GROUPS)
            prompt = shared[group] + pack_u32(rng.choices(range(50_000), k=options.tokens - SHARED_TOKENS))
            hashes = packed_block_hashes(prompt, options.block_size, root)
            for number, side in enumerate(sides):
                wait_s = began + (ticket - first + number / len(sides)) / options.rate - time.monotonic()
                if wait_s > 0:
                    await anyio.sleep(wait_s)
                side.players.send(ticket, group, prompt, hashes)
            ticket += 1
        with anyio.fail_after(60):
            while any(side.players.taken < ticket for side in sides):  # noqa: ASYNC110 - deliveries are counted
                await anyio.sleep(0.02)

    await send(WARMUP)
    for side in sides:
        side.mark()
    await anyio.sleep(options.seconds / 2)
    for side in sides:
        elapsed_s, cpu_s, _ = side.mark()
        side.background_share = cpu_s / elapsed_s
    count = int(options.seconds * options.rate)
    await send(count)
    results = []
    for side in sides:
        elapsed_s, cpu_s, broker_s = side.mark()
        request_us = 1e6 * (cpu_s - side.background_share * elapsed_s) / count
        broker_us, cached_part = 1e6 * broker_s / count, side.players.hits / ticket
        results.append(Result(side.name, count, request_us, broker_us, side.background_share, cached_part))
    return results


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


async def run(options: argparse.Namespace) -> list[Result]:
    names = ["router", *(["other"] if options.beside else []), *([] if options.only_router else ["forwarder"])]
    async with AsyncExitStack() as stack:
        return await drive([await stack.enter_async_context(started_side(name, options)) for name in names], options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second, for each process")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only-router", action="store_true", help="leave the forwarder out")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="measure the router of another checkout, too")
    parser.add_argument("--forward", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forward:
        anyio.run(forward, options.forward, backend_options={"use_uvloop": True})
        return
    for result in anyio.run(run, options, backend_options={"use_uvloop": True}):
        print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
