"""A stage for followers: a broker, and workers that only talk about blocks."""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from bus.codec import encode
from bus.config import BusConfig
from bus.connection import open_bus
from bus.messages.base import pack_u64
from bus.messages.fleet import WorkerCard, WorkerLoad
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent
from bus.protocol import Bus
from bus.registry import keep_card
from bus.server import Server, run_server
from bus.subjects import Subjects
from bus.testing import MemoryBroker
from components.worker.events import EventPublisher
from kv_events.index import PrefixIndex
from kv_events.log import KvLog

HEARTBEAT_S = 0.25


class LossyBus:
    """The publishing side of a bus that loses some messages of one subject."""

    def __init__(self, bus: Bus, lossy: str) -> None:
        self._bus = bus
        self._lossy = lossy
        self._rng = random.Random(1)
        self.loss = 0.0
        self.num_lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def publish(self, subject: str, payload: bytes, **details: Any) -> None:
        if subject == self._lossy and self._rng.random() < self.loss:
            self.num_lost += 1
        else:
            self._bus.publish(subject, payload, **details)


class Speaker:
    """A worker without an engine: its blocks change as the test says, the rest is a real worker's."""

    def __init__(self, bus: Bus, worker: str) -> None:
        self.bus = bus
        self.lossy = LossyBus(bus, bus.subjects.kv("m", worker))
        self.log = KvLog(worker, time.time_ns())
        self.events = EventPublisher(self.lossy, bus.subjects.kv("m", worker), self.log)  # type: ignore[arg-type]
        self.held: list[int] = []
        self._rng = random.Random(worker)

    def publish(self, *events: KvEvent) -> None:
        self.events.publish(events)

    def live(self, count: int) -> None:
        """Let so many prompts come, and old ones go."""
        for _ in range(count):
            parent = self._rng.choice(self.held) if self.held and self._rng.random() < 0.5 else 0
            chain = [self._rng.getrandbits(64) for _ in range(self._rng.randrange(1, 9))]
            self.held += chain
            self.publish(BlocksStored(parent, pack_u64(chain)))
            if len(self.held) > 500:
                gone, self.held = self.held[:20], self.held[20:]
                self.publish(BlocksRemoved(pack_u64(gone)))

    async def run(self) -> None:
        card = WorkerCard(
            worker=self.log.worker,
            model="m",
            engine="none",
            roles=["both"],
            slots=1,
            block_size=16,
            num_blocks=2**20,
            max_model_len=2**20,
            host="h",
            pid=1,
            version="0",
            started_at=0.0,
        )
        async with keep_card(self.bus, f"worker.{self.log.worker}", card), anyio.create_task_group() as tasks:
            tasks.start_soon(self.events.run)
            while True:
                self.beat()
                await anyio.sleep(HEARTBEAT_S)

    def beat(self) -> None:
        load = WorkerLoad(
            worker=self.log.worker,
            model="m",
            running=0,
            waiting=0,
            free_blocks=0,
            num_blocks=2**20,
            prefill_tokens=0,
            step_s=0.0,
            at=time.time(),
            kv_epoch=self.log.epoch,
            kv_seq=self.log.next_seq,
            kv_count=self.log.num_blocks,
            kv_xor=self.log.xor,
        )
        self.bus.publish(self.bus.subjects.load("m", self.log.worker), encode(load))

    def is_known_to(self, index: PrefixIndex) -> bool:
        return index.digest(self.log.worker) == (self.log.num_blocks, self.log.xor)


class Stage:
    """`restart` is the broker's: what it held in memory is gone."""

    def __init__(self, connect: Callable[[str], AbstractAsyncContextManager[Bus]], tasks: TaskGroup) -> None:
        self.connect = connect
        self.restart: Callable[[], Any]
        self._tasks = tasks

    async def add_worker(self, name: str) -> tuple[Speaker, anyio.CancelScope]:
        """Run a worker; cancelling the scope ends it."""
        scope = anyio.CancelScope()
        ready = anyio.Event()
        speakers = []

        async def run() -> None:
            with scope:
                async with self.connect(name) as bus:
                    await bus.ensure()
                    speakers.append(Speaker(bus, name))
                    ready.set()
                    await speakers[0].run()

        self._tasks.start_soon(run)
        await ready.wait()
        return speakers[0], scope


@asynccontextmanager
async def _open_stage(connect: Callable[[str], AbstractAsyncContextManager[Bus]]) -> AsyncIterator[Stage]:
    async with anyio.create_task_group() as tasks:
        yield Stage(connect, tasks)
        tasks.cancel_scope.cancel()


@pytest.fixture(params=["memory", "nats"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Stage]:
    if request.param == "memory":
        broker = MemoryBroker()
        broker.ensure()
        async with _open_stage(broker.connect) as opened:
            opened.restart = broker.restart
            yield opened
        return
    async with run_server(str(tmp_path)) as server:
        config = BusConfig(url=server.url)

        async def restart(server: Server = server) -> None:
            await server.kill()
            await server.start()

        async with _open_stage(lambda name: open_bus(config, Subjects(), name=name)) as opened:
            opened.restart = restart
            yield opened


@pytest.fixture
async def bus(stage: Stage) -> AsyncIterator[Bus]:
    """The follower's connection."""
    async with stage.connect("r-1") as bus:
        await bus.ensure()
        yield bus


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex()
