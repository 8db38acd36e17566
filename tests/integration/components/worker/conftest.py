"""A stage for workers: a broker, workers with mock engines on it, and an owner that checks every row it gets."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup

from bus.codec import codec, encode
from bus.config import BusConfig, Config, MockConfig, WorkerConfig
from bus.connection import open_bus
from bus.messages.base import pack_u32, unpack_u32
from bus.messages.inference import Cancel, Command, Failed, Finished, GenerateJob, StepBatch, Stopping
from bus.protocol import Bus, Incoming
from bus.registry import new_id
from bus.server import run_server
from bus.subjects import ANY_WORKER, Subjects
from bus.testing import MemoryBroker
from components.engines import Engine
from components.engines.mock.engine import MockEngine
from components.engines.mock.oracle import mock_token, prompt_seed
from components.transfer import open_transfer
from components.worker.model import Model
from components.worker.service import OpenTransfer, Worker

MODEL = Model(
    name="tiny",
    directory=Path(),
    vocab_size=2048,
    max_model_len=4096,
    eos_token_ids=frozenset({1}),
    files={"tokenizer.json": b"{}"},
)

Connect = Callable[[str], AbstractAsyncContextManager[Bus]]

_batches = codec(StepBatch)


def text_of(prompt: list[int], count: int) -> list[int]:
    """Return what the mock engine writes after `prompt`."""
    seed = prompt_seed(prompt)
    return [mock_token(seed, offset, MODEL.vocab_size) for offset in range(count)]


class Owner:
    """A frontend without clients: publishes jobs, and takes rows only if they are exactly the next ones."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.texts: dict[int, list[int]] = defaultdict(list)
        self.accepted: dict[int, str] = {}
        self.sources: dict[int, str] = {}
        self.finished: dict[int, Finished] = {}
        self.failed: dict[int, Failed] = {}
        self.wrong: list[str] = []
        self._next_seq: dict[str, int] = {}
        self._news = anyio.Event()
        bus.subscribe(bus.subjects.out(name, "*"), self._take)

    def _take(self, message: Incoming) -> None:
        batch = _batches.decode(message.payload)
        next_seq = self._next_seq.get(batch.worker, 0)
        if batch.seq < next_seq:
            return  # sent again, because it might have been lost
        if batch.seq > next_seq:
            self.wrong.append(f"batch {batch.seq} of {batch.worker} is out of order")
        self._next_seq[batch.worker] = batch.seq + 1
        self.accepted.update((entry.ticket, batch.worker) for entry in batch.accepted)
        self.sources.update((entry.ticket, entry.source) for entry in batch.accepted if entry.source)
        columns = unpack_u32(batch.tickets), unpack_u32(batch.offsets), unpack_u32(batch.tokens)
        for ticket, offset, token in zip(*columns, strict=True):
            if offset != len(self.texts[ticket]) or ticket in self.finished:
                self.wrong.append(f"row {offset} of ticket {ticket} comes after {len(self.texts[ticket])} rows")
            self.texts[ticket].append(token)
        for entries in (batch.finished, batch.failed):
            for entry in entries:
                if entry.ticket in self.finished or entry.ticket in self.failed:
                    self.wrong.append(f"ticket {entry.ticket} ended twice")
        self.finished.update((entry.ticket, entry) for entry in batch.finished)
        self.failed.update((entry.ticket, entry) for entry in batch.failed)
        self._news.set()

    async def send(self, ticket: int, prompt: list[int], *, max_tokens: int = 16, **fields: Any) -> None:
        job = GenerateJob(
            **{
                "request_id": f"r-{ticket}",
                "frontend": self.name,
                "ticket": ticket,
                "model": MODEL.name,
                "prompt": pack_u32(prompt),
                "stopping": Stopping(max_tokens=max_tokens),
                **fields,
            }
        )
        await self.send_raw(encode(job), job.latency_class)

    async def send_raw(self, payload: bytes, latency_class: str = "standard") -> None:
        subject = self.bus.subjects.work("tiny", "both", ANY_WORKER, latency_class)
        await self.bus.append(subject, payload, timeout_s=30)

    def cancel(self, worker: str, *tickets: int) -> None:
        self.bus.publish(self.bus.subjects.ctl(worker), encode(Cancel(frontend=self.name, tickets=pack_u32(tickets))))

    def command(self, worker: str, command: Command) -> None:
        self.bus.publish(self.bus.subjects.ctl(worker), encode(command))

    async def wait(self, is_so: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait until a condition on what came holds."""
        with anyio.fail_after(within_s):
            while not is_so():
                self._news = anyio.Event()
                await self._news.wait()

    async def wait_ended(self, *tickets: int) -> None:
        await self.wait(lambda: all(ticket in self.finished or ticket in self.failed for ticket in tickets))


class Running:
    """A worker on the stage."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: Worker
        self.engine: Engine
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.failure: Exception | None = None


class Stage:
    def __init__(self, connect: Connect, tasks: TaskGroup, owner: Owner, server: Any) -> None:
        self.connect = connect
        self.owner = owner
        self.server = server
        self.lease_s = 10.0
        self._tasks = tasks

    async def add_worker(
        self,
        *,
        make_engine: Callable[[MockConfig], Engine] = lambda mock: MockEngine(mock, model="tiny", vocab_size=2048),
        mock: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Running:
        """Run one more worker, and return when it reports its load: it pulls by then."""
        config = Config(
            worker=msgspec.structs.replace(WorkerConfig(engine="mock", grace_s=5.0), **settings),
            mock=msgspec.structs.replace(MockConfig(max_model_len=4096), **(mock or {})),
        )
        running = Running(new_id("w"))
        running.engine = make_engine(config.mock)
        registered = anyio.Event()
        async with self.owner.bus.bucket("REG").watch(
            lambda entry: registered.set() if entry.key == f"worker.{running.name}" else None
        ):
            self._tasks.start_soon(self._run_worker, running, config)
            with anyio.fail_after(30):
                await registered.wait()
        return running

    async def _run_worker(self, running: Running, config: Config) -> None:
        with running.scope:
            async with self.connect(running.name) as bus:
                await bus.ensure()
                running.worker = Worker(
                    config, bus, running.engine, MODEL, running.name, open_transfer=self._transfer_of(running)
                )
                try:
                    await running.worker.run()
                except Exception as error:
                    running.failure = error
        running.ended.set()

    def _transfer_of(self, running: Running) -> OpenTransfer | None:
        memory = getattr(running.engine, "memory", None)
        if memory is None:
            return None
        return lambda: open_transfer(memory, running.name, transport="loopback", lease_s=self.lease_s)

    async def registered(self) -> set[str]:
        return {entry.key for entry in await self.owner.bus.bucket("REG").entries()}


@asynccontextmanager
async def _memory(_: Path) -> AsyncIterator[tuple[Connect, None]]:
    yield MemoryBroker().connect, None


@asynccontextmanager
async def _nats(state_dir: Path) -> AsyncIterator[tuple[Connect, Any]]:
    async with run_server(str(state_dir)) as server:
        yield lambda name: open_bus(BusConfig(url=server.url), Subjects(), name=name), server


@asynccontextmanager
async def open_stage(kind: str, state_dir: Path) -> AsyncIterator[Stage]:
    async with (_memory if kind == "memory" else _nats)(state_dir) as (connect, server), connect("f-1") as bus:
        await bus.ensure()
        async with anyio.create_task_group() as tasks:
            stage = Stage(connect, tasks, Owner(bus, "f-1"), server)
            yield stage
            tasks.cancel_scope.cancel()
        assert stage.owner.wrong == []


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stands still for a while loses no job to another: owners here take it that a job runs once."""
    monkeypatch.setattr("components.worker.lanes.ACCEPT_WITHIN_S", 30.0)


@pytest.fixture(params=["memory", "nats"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Stage]:
    async with open_stage(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
async def nats_stage(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Stage]:
    async with open_stage("nats", tmp_path) as opened:
        yield opened


@pytest.fixture
def text() -> Callable[[list[int], int], list[int]]:
    return text_of
