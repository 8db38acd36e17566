"""I/O. Workers that prefill and workers that decode, killed at points of the way of a request from one to the other."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio

from bus.codec import codec, encode
from bus.config import BusConfig
from bus.connection import open_bus
from bus.messages.base import unpack_u32
from bus.messages.inference import GenerateJob, Role, SetRoles, StepBatch
from bus.protocol import Bus, Incoming
from bus.subjects import Subjects
from components.chaos.history import Question
from tests.faults.system import System, make_questions, until

LENGTHS = (15, 16, 17, 100, 333, 512, 513, 2100)
"""Of the prompts: block borders, one chunk, several, and so many that blocks are offered before the prompt is done."""
MAX_TOKENS = 24
SETTINGS = {
    "router.disaggregate": "always",
    "worker.transfer": "loopback",
    "mock.step_base_s": 0.004,
    "mock.prefill_token_s": 0.00005,
    "mock.block_size": 16,
    "mock.num_blocks": 2048,
    "mock.max_batch_tokens": 256,
}
ROLES: tuple[Role, ...] = ("prefill", "prefill", "decode", "decode")
SWITCHES: tuple[tuple[Role, ...], ...] = (("decode",), ("prefill",), ("both",), ("prefill", "decode"), ("prefill",))
"""Roles that workers get in turn."""
POINT_WITHIN_S = 10.0
Victim = Callable[[Incoming, Bus], str]

_jobs, _batches = codec(GenerateJob), codec(StepBatch)


class Point(NamedTuple):
    """A moment that shows on the bus, and who dies then."""

    name: str
    subject: str
    victim: Victim
    """The name of a worker, empty for a message that shows another moment."""
    delay_s: float = 0.0


def _lane(message: Incoming, bus: Bus) -> str:
    return bus.subjects.parse(message.subject).fields[2]


def _source(message: Incoming, bus: Bus) -> str:
    handover = _jobs.decode(message.payload).handover
    return "" if handover is None else handover.worker


def _acceptor(message: Incoming, bus: Bus) -> str:
    batch = _batches.decode(message.payload)
    return batch.worker if any(not each.source for each in batch.accepted) else ""


def _first_sender(message: Incoming, bus: Bus) -> str:
    batch = _batches.decode(message.payload)
    return batch.worker if 0 in unpack_u32(batch.offsets) else ""


def _reader(message: Incoming, bus: Bus) -> str:
    batch = _batches.decode(message.payload)
    return batch.worker if any(each.source for each in batch.accepted) else ""


def _read_from(message: Incoming, bus: Bus) -> str:
    return next((each.source for each in _batches.decode(message.payload).accepted if each.source), "")


def _decoder(message: Incoming, bus: Bus) -> str:
    batch = _batches.decode(message.payload)
    return batch.worker if max(unpack_u32(batch.offsets), default=0) > MAX_TOKENS // 2 else ""


POINTS = (
    Point("a job lies with a prefill worker", "work.v1.*.prefill.*.*", _lane),
    Point("a prefill worker took it", "out.v1.>", _acceptor),
    Point("in the middle of a prefill", "out.v1.>", _acceptor, 0.012),
    Point("the first token left", "out.v1.>", _first_sender),
    Point("the offer is with the broker, its source dies", "req.v1.>", _source),
    Point("the offer lies with a decode worker, which dies", "work.v1.*.decode.*.*", _lane),
    Point("the offer lies with a decode worker, its source dies", "work.v1.*.decode.*.*", _source),
    Point("blocks are read, the reader dies", "out.v1.>", _reader),
    Point("blocks are read, their source dies", "out.v1.>", _read_from),
    Point("in the middle of an answer", "out.v1.>", _decoder),
)


class Flow:
    """A system of prefill and decode workers, a router and a frontend, and a look at its bus."""

    def __init__(self, system: System, bus: Bus) -> None:
        self.system = system
        self.bus = bus

    async def questions(self, count: int, seed: int) -> list[Question]:
        return await make_questions(self.system.target(), count, max_tokens=MAX_TOKENS, seed=seed, lengths=LENGTHS)

    def start_worker(self, number: int) -> None:
        self.system.start(f"worker-{number}", settings={"worker.roles": [ROLES[number]]})

    def workers(self) -> dict[str, int]:
        """Return the number of each worker that lives, by its name on the bus."""
        started = {number: self.system.events(f"worker-{number}", "worker.started") for number in range(len(ROLES))}
        return {str(events[-1]["worker"]): number for number, events in started.items() if events}

    async def kill_at(self, point: Point) -> int:
        """Kill one worker at that point of some request, and start it again; return its number."""
        numbers = self.workers()
        killed: list[int] = []
        shown = anyio.Event()

        def on_message(message: Incoming) -> None:
            number = numbers.get(point.victim(message, self.bus))
            if number is not None and not killed:
                killed.append(number)
                if not point.delay_s:
                    self.system.processes[f"worker-{number}"].kill()
                shown.set()

        subscription = self.bus.subscribe(f"{self.bus.subjects.namespace}.{point.subject}", on_message)
        try:
            with anyio.move_on_after(POINT_WITHIN_S):
                await shown.wait()
            assert killed, f"not within {POINT_WITHIN_S} s: {point.name}; {numbers}"
        finally:
            subscription.unsubscribe()
        await anyio.sleep(point.delay_s)
        (number,) = killed
        num_started = len(self.system.events(f"worker-{number}", "worker.started"))
        self.system.kill(f"worker-{number}")
        self.start_worker(number)
        await until(lambda: len(self.system.events(f"worker-{number}", "worker.started")) > num_started)
        return number

    async def set_roles(self, worker: str, roles: Sequence[Role]) -> float:
        """Give a worker other roles; return the seconds until it said that it has them."""
        began_at = time.monotonic()
        command = encode(SetRoles(roles=list(roles)))
        answer = await self.bus.request(self.bus.subjects.ctl(worker), command, timeout_s=10.0)
        assert sorted(codec(SetRoles).decode(answer.payload).roles) == sorted(roles)
        return time.monotonic() - began_at


@asynccontextmanager
async def open_flow(folder: Path) -> AsyncIterator[Flow]:
    """Run a broker, four workers, a router and a frontend while the context is open."""
    system = System(folder, SETTINGS)
    try:
        await system.start_nats()
        async with open_bus(BusConfig(url=system.server.url), Subjects(), name="watcher") as bus:
            flow = Flow(system, bus)
            for number in range(len(ROLES)):
                flow.start_worker(number)
            system.start("router-0")
            system.start("frontend-0")
            await system.wait_ready(len(ROLES))
            yield flow
    finally:
        system.close()
