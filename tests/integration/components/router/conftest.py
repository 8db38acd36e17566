"""A stage for routers: a broker, puppets that speak as workers do, and an owner of requests."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from bus.codec import codec, encode
from bus.config import BusConfig, Config, RouterConfig
from bus.connection import open_bus
from bus.messages.base import pack_u32
from bus.messages.fleet import WorkerCard, WorkerLoad
from bus.messages.inference import Failed, GenerateJob, StepBatch, Stopping
from bus.protocol import Bus, ConsumerSpec, Delivery, Incoming
from bus.registry import keep_card
from bus.server import run_server
from bus.subjects import ANY_WORKER, Subjects
from bus.testing import MemoryBroker
from components.router.service import Router

Connect = Callable[[str], AbstractAsyncContextManager[Bus]]

_jobs = codec(GenerateJob)
_batches = codec(StepBatch)


class Puppet:
    """A worker without an engine: it accepts what comes into its lane, and reports what the test says."""

    def __init__(self, bus: Bus, name: str, **fields: Any) -> None:
        self.bus = bus
        self.name = name
        self.taken: list[GenerateJob] = []
        self.is_accepting = True
        self.report_fields: dict[str, Any] = {}
        self.news = anyio.Event()
        known: dict[str, Any] = {
            "worker": name,
            "model": "m",
            "engine": "puppet",
            "roles": ["both"],
            "slots": 256,
            "block_size": 16,
            "num_blocks": 1024,
            "max_model_len": 8192,
            "host": "h",
            "pid": 1,
            "version": "0",
            "started_at": 0.0,
            "max_running": 64,
        }
        self.card = WorkerCard(**{**known, **fields})

    async def run(self, is_up: anyio.Event, lanes: tuple[str, ...]) -> None:
        async with AsyncExitStack() as stack:
            for lane in lanes:
                consumer = ConsumerSpec(
                    stream="WORK",
                    name=f"{lane}-m",
                    filter_subject=self.bus.subjects.work("m", "both", lane, "*"),
                    ack_wait_s=60.0,
                )
                pull = await stack.enter_async_context(self.bus.pull(consumer, self._take))
                pull.grant(10_000)
            await stack.enter_async_context(keep_card(self.bus, f"worker.{self.name}", self.card))
            is_up.set()
            while True:
                self.report()
                await anyio.sleep(0.1)

    def report(self) -> None:
        known: dict[str, Any] = {
            "worker": self.name,
            "model": "m",
            "running": 0,
            "waiting": 0,
            "free_blocks": self.card.num_blocks,
            "num_blocks": self.card.num_blocks,
            "prefill_tokens": 0,
            "step_s": 0.01,
            "at": time.time(),
        }
        self.bus.publish(self.bus.subjects.load("m", self.name), encode(WorkerLoad(**{**known, **self.report_fields})))

    def _take(self, delivery: Delivery) -> None:
        if not self.is_accepting:
            return
        self.taken.append(_jobs.decode(delivery.payload))
        delivery.ack()
        self.news.set()


class Owner:
    """A frontend as the router sees it: appends to `REQ`, and hears refusals."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.failed: list[Failed] = []
        self._next_seq: dict[str, int] = defaultdict(int)
        bus.subscribe(bus.subjects.out(name, "*"), self._on_batch)

    async def send(self, ticket: int, *, tokens: int = 64, first: int = 0, **fields: Any) -> None:
        known: dict[str, Any] = {
            "request_id": f"q-{ticket}",
            "frontend": self.name,
            "ticket": ticket,
            "model": "m",
            "prompt": pack_u32(range(first, first + tokens)),
            "stopping": Stopping(max_tokens=16),
        }
        job = GenerateJob(**{**known, **fields})
        await self.bus.append(self.bus.subjects.req("m", job.latency_class, job.tenant), encode(job), timeout_s=30)

    def _on_batch(self, incoming: Incoming) -> None:
        batch = _batches.decode(incoming.payload)
        assert batch.seq == self._next_seq[batch.worker]
        self._next_seq[batch.worker] += 1
        self.failed += batch.failed


class Stage:
    def __init__(self, connect: Connect, tasks: TaskGroup, owner: Owner) -> None:
        self.connect = connect
        self.owner = owner
        self.puppets: list[Puppet] = []
        self._tasks = tasks
        self._scopes: dict[str, anyio.CancelScope] = {}

    @property
    def taken(self) -> list[GenerateJob]:
        """Return what all puppets took, each in its order."""
        return [job for puppet in self.puppets for job in puppet.taken]

    async def add_puppet(self, name: str, *, lanes: tuple[str, ...] = (), **fields: Any) -> Puppet:
        """Let a worker live; it pulls from its own lane, and from `lanes`."""
        is_up = anyio.Event()
        scope = self._scopes[name] = anyio.CancelScope()

        async def run() -> None:
            with scope:
                async with self.connect(name) as bus:
                    puppet = Puppet(bus, name, **fields)
                    self.puppets.append(puppet)
                    await puppet.run(is_up, (name, *lanes))

        self._tasks.start_soon(run)
        await is_up.wait()
        return next(puppet for puppet in self.puppets if puppet.name == name)

    async def add_router(self, name: str, **settings: Any) -> Router:
        """Run a router, and return when it is in the registry."""
        is_up = anyio.Event()
        routers: list[Router] = []
        scope = self._scopes[name] = anyio.CancelScope()

        async def run() -> None:
            with scope:
                async with self.connect(name) as bus:
                    await bus.ensure()
                    routers.append(Router(Config(router=RouterConfig(**settings)), bus, name))
                    await routers[0].run()

        async with self.owner.bus.bucket("REG").watch(
            lambda entry: is_up.set() if entry.key == f"router.{name}" else None
        ):
            self._tasks.start_soon(run)
            with anyio.fail_after(30):
                await is_up.wait()
        return routers[0]

    async def run_router(self, name: str, **settings: Any) -> None:
        """Run a router to its end."""
        async with self.connect(name) as bus:
            await Router(Config(router=RouterConfig(**settings)), bus, name).run()

    def kill(self, name: str) -> None:
        """End a process without a word: its card stays."""
        self._scopes[name].cancel()

    async def wait(self, is_so: Callable[[], bool], within_s: float = 30.0) -> None:
        with anyio.fail_after(within_s):
            while not is_so():  # noqa: ASYNC110 - what is waited for has no event
                await anyio.sleep(0.005)


@asynccontextmanager
async def _memory(_: Path) -> AsyncIterator[Connect]:
    yield MemoryBroker().connect


@asynccontextmanager
async def _nats(state_dir: Path) -> AsyncIterator[Connect]:
    async with run_server(str(state_dir)) as server:
        yield lambda name: open_bus(BusConfig(url=server.url), Subjects(), name=name)


@pytest.fixture(params=["memory", "nats"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Stage]:
    async with (_memory if request.param == "memory" else _nats)(tmp_path) as connect, connect("f-1") as bus:
        await bus.ensure()
        async with anyio.create_task_group() as tasks:
            yield Stage(connect, tasks, Owner(bus, "f-1"))
            tasks.cancel_scope.cancel()


@pytest.fixture
def any_lane() -> str:
    return ANY_WORKER
