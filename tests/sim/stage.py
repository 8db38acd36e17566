"""I/O (in memory). The processes of a deployment in one event loop, each under a supervisor that starts it again."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from random import Random
from typing import Literal

import anyio
import msgspec

from bus.config import Config, FrontendConfig, MockConfig, OffloadConfig, WorkerConfig
from bus.errors import BuswayError
from bus.lifecycle import Component
from bus.protocol import Bus
from bus.testing import MemoryBroker
from components.engines.mock.engine import MockEngine
from components.router.service import Router
from components.worker.service import Worker, open_worker
from frontend.service import Frontend
from offload.store import Store
from tests.history import check_idle
from tests.sim.idle import find_engine, look_at_router, look_at_worker
from tests.sim.layout import PLAIN, Layout
from tests.sim.loop import PROCESS, SimLoop
from tests.sim.model import MAX_MODEL_LEN, model
from tests.sim.shelf import Shelf, ShelfStore
from tests.sim.stdlib import WallClock
from tests.sim.trace import Trace
from tests.sim.weather import Weather
from tests.sim.wire import Host

Kind = Literal["worker", "router", "frontend"]
KINDS: tuple[Kind, ...] = ("worker", "router", "frontend")

GRACE_S = 5.0
"""What workers have to finish when told to stop."""
DRAIN_S = 45.0
"""When a process that was told to stop must have ended; frontends give their streams 30 s."""
ENGINE = MockConfig(
    decode_base_s=0.02,
    prefill_base_s=0.01,
    prefill_token_s=0.0005,
    num_blocks=96,
    block_size=16,
    max_running=6,
    max_batch_tokens=128,
    max_model_len=MAX_MODEL_LEN,
)
FOREVER_S = 1e6
HANG_S = 1.0
"""How long it takes until an engine that hangs for a while, or forever, would not begin to."""
STALL_S = 4.0
"""How long a step may take until the worker gives its engine up: longer than any of a slow engine."""
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

    def __init__(
        self,
        rng: Random,
        broker: MemoryBroker,
        weather: Weather,
        wall: WallClock,
        trace: Trace,
        *,
        layout: Layout = PLAIN,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.loop = loop
        self.layout = layout
        self.broker = broker
        self.host = Host(weather)
        self.shelf = Shelf(weather, wall.now)
        self.weather = weather
        self.wall = wall
        self.trace = trace
        self.processes: list[Process] = []
        self.crashes: list[str] = []
        """What processes raised that they should not."""
        self.is_over = False
        self._rng = rng

    @asynccontextmanager
    async def run(self, num_routers: int, num_frontends: int) -> AsyncIterator[None]:
        """Keep the processes going; at the end all are told to stop, and must."""
        async with anyio.create_task_group() as tasks:
            counts: dict[Kind, int] = {
                "worker": len(self.layout.roles),
                "router": num_routers,
                "frontend": num_frontends,
            }
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
        self.host.lose(name)
        self.loop.thaw(name)
        process.scope.cancel()

    def stop(self, process: Process) -> None:
        """Send SIGTERM."""
        if process.component is not None and not process.is_dead:
            self.trace.note(f"fault.stop_{process.kind}", process.name)
            process.component.stop()

    async def hang(self, process: Process, step_s: float = FOREVER_S) -> None:
        """Let each step of an engine that begins in the next moment take so long."""
        engine = find_engine(process.component) if isinstance(process.component, Worker) else None
        if engine is None or engine._config.step_base_s > STALL_S / 2:
            return
        self.trace.note("fault.hang_engine", f"{process.name} {step_s}")
        before = engine._config
        engine._config = msgspec.structs.replace(before, step_base_s=step_s)
        await anyio.sleep(HANG_S)
        engine._config = before

    def find_leftovers(self) -> list[str]:
        """Return what processes hold or believe that they should not when nobody wants anything, a line each."""
        workers = {each.name: each.component for each in self.processes if isinstance(each.component, Worker)}
        routers = {each.name: each.component for each in self.processes if isinstance(each.component, Router)}
        wrong = check_idle(look_at_worker(name, worker, self.host) for name, worker in workers.items())
        for name, router in routers.items():
            wrong += look_at_router(name, router, workers)
        return wrong

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
                    async with self._open(process, bus) as process.component:
                        await process.component.run()
        except BuswayError as error:
            self.trace.note("process.ended", f"{process.name}: {error}")
        except Exception as error:
            self.crashes.append(f"{process.name} crashed: {error!r}")
            self.trace.note("process.crashed", f"{process.name}: {error!r}")
        finally:
            PROCESS.reset(token)
            self.loop.servers.pop(process.name, None)

    @asynccontextmanager
    async def _open(self, process: Process, bus: Bus) -> AsyncIterator[Component]:
        if process.kind == "router":
            yield Router(Config(router=self.layout.router), bus, process.name, wall=self.wall.now)
        elif process.kind == "frontend":
            with closing(socket.socket()) as listener:
                yield Frontend(bus, process.name, FrontendConfig(), listener)
        else:
            config = self._worker_config(process)
            engine = MockEngine(config.mock, model=model().name, vocab_size=model().vocab_size)
            async with open_worker(
                config,
                bus,
                engine,
                model(),
                process.name,
                opener=self.host.open_transfer,
                find_stores=self._find_stores,
            ) as worker:
                yield worker

    def _find_stores(self, config: OffloadConfig) -> list[Store]:
        return [ShelfStore(self.shelf)] if config.redis.url else []

    def _worker_config(self, process: Process) -> Config:
        engine = ENGINE
        if process.number == 0 and self._rng.random() < 0.4:
            self.trace.note("fault.slow_engine", process.name)
            engine = msgspec.structs.replace(engine, step_base_s=SLOW * ENGINE.decode_base_s)
        roles = self.layout.roles[process.number]
        worker = WorkerConfig(engine="mock", slots=8, grace_s=GRACE_S, stall_s=STALL_S, roles=roles)
        return Config(worker=worker, offload=self.layout.offload, mock=engine)
