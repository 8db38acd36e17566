"""I/O (in memory). The processes of a deployment in one event loop, each under a supervisor that starts it again."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from random import Random
from typing import Literal

import anyio
import msgspec

from bus.config import Config, FrontendConfig, MockConfig, WorkerConfig
from bus.errors import BuswayError
from bus.lifecycle import Component
from bus.protocol import Bus
from bus.testing import MemoryBroker
from components.replay.world import make_worker
from components.router.service import Router
from components.worker.service import Worker
from frontend.service import Frontend
from tests.history import Idle
from tests.sim.loop import PROCESS, SimLoop
from tests.sim.model import MAX_MODEL_LEN, model
from tests.sim.stdlib import WallClock
from tests.sim.trace import Trace
from tests.sim.weather import Weather

Kind = Literal["worker", "router", "frontend"]
KINDS: tuple[Kind, ...] = ("worker", "router", "frontend")

GRACE_S = 5.0
"""What workers have to finish when told to stop."""
DRAIN_S = 45.0
"""When a process that was told to stop must have ended; frontends give their streams 30 s."""
DIE_S = 10.0
"""When what is left of a killed process must have been cleaned up."""
ENGINE = MockConfig(
    decode_base_s=0.02,
    prefill_base_s=0.01,
    prefill_token_s=0.0005,
    num_blocks=96,
    block_size=4,
    max_running=6,
    max_batch_tokens=128,
    max_model_len=MAX_MODEL_LEN,
)
SLOW = 8.0
"""How much slower a slow engine is."""


class Process:
    """One place for a process, and who has it at present."""

    def __init__(self, kind: Kind, number: int) -> None:
        self.kind = kind
        self.number = number
        self.incarnation = 0
        self.component: Component | None = None
        self.scope: anyio.CancelScope | None = None
        self.is_dead = False

    @property
    def name(self) -> str:
        """Return the id of the process that runs now."""
        return f"{self.kind[0]}-{self.number}-{self.incarnation}"


class Stage:
    """Everything that a run consists of but its clients and its faults."""

    def __init__(self, rng: Random, broker: MemoryBroker, weather: Weather, wall: WallClock, trace: Trace) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.loop = loop
        self.broker = broker
        self.weather = weather
        self.wall = wall
        self.trace = trace
        self.processes: list[Process] = []
        self.crashes: list[str] = []
        """What processes raised that they should not."""
        self.is_over = False
        self._rng = rng

    @asynccontextmanager
    async def run(self, num_workers: int, num_routers: int, num_frontends: int) -> AsyncIterator[None]:
        """Keep the processes going; at the end all are told to stop, and must."""
        async with anyio.create_task_group() as tasks:
            counts: dict[Kind, int] = {"worker": num_workers, "router": num_routers, "frontend": num_frontends}
            for kind in KINDS:
                for number in range(counts[kind]):
                    process = Process(kind, number)
                    self.processes.append(process)
                    tasks.start_soon(self._supervise, process)
            yield
            self.is_over = True
            for process in self.processes:
                self.stop(process)

    def doors(self) -> list[str]:
        """Return the frontends that listen."""
        return [
            process.name
            for process in self.processes
            if process.kind == "frontend" and (door := self.loop.servers.get(process.name)) and door.is_open
        ]

    def of_kind(self, kind: Kind) -> Iterator[Process]:
        """Yield the processes of a kind."""
        return (process for process in self.processes if process.kind == kind)

    def kill(self, process: Process) -> None:
        """End a process at once: nothing that it does from now on is seen by anybody."""
        if process.scope is None or process.is_dead:
            return
        process.is_dead = True
        name = process.name
        self.trace.note(f"fault.kill_{process.kind}", name)
        self.weather.fuses.pop(name, None)
        if (bus := self.broker.find(name)) is not None:
            self.broker.cut(bus)
        if (door := self.loop.servers.get(name)) is not None:
            door.die()
        self.loop.thaw(name)
        process.scope.cancel()

    def stop(self, process: Process) -> None:
        """Send SIGTERM."""
        if process.component is not None and not process.is_dead:
            self.trace.note(f"fault.stop_{process.kind}", process.name)
            process.component.stop()

    def idle_workers(self) -> list[Idle]:
        """Return what the workers hold."""
        return [
            _idle(process.name, process.component)
            for process in self.of_kind("worker")
            if isinstance(process.component, Worker)
        ]

    async def _supervise(self, process: Process) -> None:
        while not self.is_over:
            process.incarnation += 1
            process.is_dead = False
            await self._live(process)
            process.component = process.scope = None
            await anyio.sleep(0.1 + 2 * self._rng.random())

    async def _live(self, process: Process) -> None:
        """Run one process to its end."""
        token = PROCESS.set(process.name)
        try:
            with anyio.CancelScope() as process.scope:
                async with self.broker.connect(process.name) as bus:
                    await bus.ensure()
                    with closing(socket.socket()) as listener:
                        process.component = self._make(process, bus, listener)
                        await process.component.run()
        except BuswayError as error:
            self.trace.note("process.ended", f"{process.name}: {error}")
        except Exception as error:
            self.crashes.append(f"{process.name} crashed: {error!r}")
            self.trace.note("process.crashed", f"{process.name}: {error!r}")
        finally:
            PROCESS.reset(token)
            self.loop.servers.pop(process.name, None)

    def _make(self, process: Process, bus: Bus, listener: socket.socket) -> Component:
        if process.kind == "router":
            return Router(Config(), bus, process.name, wall=self.wall.now)
        if process.kind == "frontend":
            return Frontend(bus, process.name, FrontendConfig(), listener)
        engine = ENGINE
        if process.number == 0 and self._rng.random() < 0.4:
            self.trace.note("fault.slow_engine", process.name)
            engine = msgspec.structs.replace(engine, step_base_s=SLOW * ENGINE.decode_base_s)
        return make_worker(
            Config(worker=WorkerConfig(engine="mock", slots=8, grace_s=GRACE_S), mock=engine),
            bus,
            model(),
            process.name,
        )


def _idle(name: str, worker: Worker) -> Idle:
    load = worker._engine.load()
    return Idle(
        name,
        len(worker._sequences.ledger),
        load.running,
        load.waiting,
        load.free_blocks,
        worker._engine.spec.num_blocks,
    )
