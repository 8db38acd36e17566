"""I/O. Measure what routing costs: CPU of a whole router process per request: `python -m tests.bench.router`.

A real broker, a real router process, and 64 workers played by this process: they report load with step samples every
250 ms, take what comes into their lanes, and tell the blocks of it. Prompts of 4,096 tokens share prefixes in groups.
Beside it, in turn, a process that only moves the same requests from `REQ` to lanes: what the way through the broker
costs on this machine, without any decision.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import deque
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
from kv_events.hashing import iter_block_hashes, salt_hash
from tests.bench.processes import started

MODEL = "m"
REPORT_S = 0.25
NUM_GROUPS = 200
SHARED_TOKENS = 3072


class Result(msgspec.Struct, frozen=True):
    """CPU of the router process, and what it decided."""

    requests: int
    request_us: float
    """CPU per request beyond what the router uses without requests."""
    broker_us: float
    """CPU of nats-server for all that this bench does per request: a measure of the machine at that time."""
    background_share: float
    """Part of one CPU that hearing the workers' reports takes."""
    cached_part: float
    """Of the prompts, as the workers' lanes saw them: a request came where its group was before."""


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
        self.hashes: dict[int, list[int]] = {}

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

    def take(self, delivery: Delivery) -> None:
        job = self._jobs.decode(delivery.payload)
        delivery.ack()
        self.taken += 1
        worker = self._bus.subjects.parse(delivery.subject).fields[2]
        group = int(job.tenant)
        self.hits += (worker, group) in self._homes
        self._homes[worker, group] = True
        hashes = self.hashes.pop(job.ticket)
        seq = self._seqs.get(worker, 0)
        self._seqs[worker] = seq + 1
        event = msgspec.Raw(encode(BlocksStored(0, pack_u64(hashes))))
        self._bus.publish(self._bus.subjects.kv(MODEL, worker), encode(KvBatch(worker, 1, seq, [event])))


async def drive(bus: Bus, players: Players, options: argparse.Namespace, pid: int, broker_pid: int) -> Result:
    rng = random.Random(1)
    shared = [pack_u32(rng.choices(range(50_000), k=SHARED_TOKENS)) for _ in range(NUM_GROUPS)]
    root = salt_hash(MODEL)
    await anyio.sleep(2.0)
    idle = read_usage(pid).cpu_s
    await anyio.sleep(options.seconds / 2)
    background_share = (read_usage(pid).cpu_s - idle) / (options.seconds / 2)
    began, used, broker_used = time.monotonic(), read_usage(pid).cpu_s, read_usage(broker_pid).cpu_s
    due: deque[float] = deque(began + n / options.rate for n in range(int(options.seconds * options.rate)))
    ticket = 0
    while due:
        wait_s = due[0] - time.monotonic()
        if wait_s > 0:
            await anyio.sleep(wait_s)
        due.popleft()
        ticket += 1
        group = rng.randrange(NUM_GROUPS)
        prompt = shared[group] + pack_u32(rng.choices(range(50_000), k=options.tokens - SHARED_TOKENS))
        players.hashes[ticket] = list(iter_block_hashes(prompt, options.block_size, root))
        job = GenerateJob(
            request_id=f"q-{ticket}",
            frontend="f-1",
            ticket=ticket,
            model=MODEL,
            prompt=prompt,
            tenant=str(group),
            stopping=Stopping(max_tokens=64),
        )
        bus.publish(bus.subjects.req(MODEL, "standard", job.tenant), encode(job))
    with anyio.fail_after(30):
        while players.taken < ticket:  # noqa: ASYNC110 - deliveries are counted, not awaited
            await anyio.sleep(0.02)
    cpu_s = read_usage(pid).cpu_s - used - background_share * (time.monotonic() - began)
    broker_s = read_usage(broker_pid).cpu_s - broker_used
    return Result(ticket, 1e6 * cpu_s / ticket, 1e6 * broker_s / ticket, background_share, players.hits / ticket)


async def forward(url: str) -> None:
    """Move requests to lanes in turn: pull, append, ack."""
    async with open_bus(BusConfig(url=url), Subjects(), name="forwarder") as bus, anyio.create_task_group() as tasks:
        count = 0

        async def move(delivery: Delivery, worker: str) -> None:
            await bus.append(bus.subjects.work(MODEL, "both", worker, "standard"), delivery.payload)
            delivery.ack()

        def on_delivery(delivery: Delivery) -> None:
            nonlocal count
            count += 1
            tasks.start_soon(move, delivery, f"w-{count % 64}")
            pull.grant(256)

        spec = ConsumerSpec(
            stream="REQ", name="req-m-standard", filter_subject=bus.subjects.req(MODEL, "standard", "*")
        )
        async with bus.pull(spec, on_delivery) as pull:
            pull.grant(256)
            await anyio.sleep_forever()


async def run(options: argparse.Namespace, *, is_bare: bool) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        async with run_server(f"{directory}/nats") as server:
            bus_config = BusConfig(url=server.url)
            command = [sys.executable, "-P", "-m", "components.cli", "router", "--set", f"bus.url={server.url}"]
            if is_bare:
                command = [sys.executable, "-m", "tests.bench.router", "--forward", server.url]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            async with open_bus(bus_config, Subjects(), name="players") as bus:
                await bus.ensure()
                players = Players(bus, options)
                await players.join()
                spec = ConsumerSpec(
                    stream="WORK", name="all", filter_subject=bus.subjects.work(MODEL, "both", "*", "*")
                )
                with started(command, environment, Path(directory) / "router.log") as router:
                    async with bus.pull(spec, players.take) as pull, anyio.create_task_group() as tasks:
                        pull.grant(100_000)
                        tasks.start_soon(players.report)
                        assert server.process is not None
                        result = await drive(bus, players, options, router.pid, server.process.pid)
                        tasks.cancel_scope.cancel()
                        return result
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=["router", "forwarder"], help="measure one of the two")
    parser.add_argument("--forward", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forward:
        anyio.run(forward, options.forward, backend_options={"use_uvloop": True})
        return
    for name, is_bare in (("router", False), ("forwarder", True)):
        if options.only not in (None, name):
            continue
        result = anyio.run(lambda bare=is_bare: run(options, is_bare=bare), backend_options={"use_uvloop": True})
        print(name, msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
