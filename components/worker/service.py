"""I/O. The worker process: from a model directory to a place in the pool, and out of it without losing a request."""

import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Protocol, cast

import anyio
import structlog

from bus.access import process_name
from bus.config import Config
from bus.connection import open_bus
from bus.errors import BadConfig, BusUnavailable, EngineDied
from bus.lifecycle import serve
from bus.messages.inference import LATENCY_CLASSES
from bus.permissions import own_lane, shared_lane
from bus.protocol import Bus, ConsumerSpec
from bus.scrape import answer_scrapes
from bus.subjects import ANY_WORKER, Subjects, slug
from components.engines import Engine, Step
from components.worker.canary import Canary
from components.worker.events import EventPublisher
from components.worker.intake import MAX_DELIVER, Intake
from components.worker.jobs import Served
from components.worker.load import LoadReporter
from components.worker.membership import join_pool
from components.worker.model import Model, read_model
from components.worker.owners import OwnerWatch
from components.worker.publish import Publisher
from components.worker.sequences import Sequences
from components.worker.watchdog import watchdog
from kv_events.log import KvLog

ENGINES = {"torch": "components.engines.torch", "mock": "components.engines.mock"}
"""Packages with `load_engine`; only the one that is asked for is imported."""

_OURS = ("bus", "components", "kv_events")
ACCEPT_WITHIN_S = 1.0
"""A job handed to a worker as it died goes to another after this; one that lives accepts within milliseconds."""
FORGET_LANE_S = 60.0
"""When the broker forgets the lane of a worker that is gone; the jobs in it go elsewhere long before."""
FAREWELL_S = 2.0
"""Bound on telling the owners of unfinished sequences."""

log = structlog.get_logger()


class _EngineModule(Protocol):
    def load_engine(self, config: Config, directory: Path, *, model: str) -> Engine: ...


async def run_worker(config: Config) -> None:
    """Load the engine, join the pool, and work until SIGTERM and drained.

    Raises `BadConfig`, `BusUnavailable` or `StreamMismatch` at the start, `EngineDied` later.
    """
    started_at = time.monotonic()
    model = await anyio.to_thread.run_sync(read_model, config.worker)
    engine = await anyio.to_thread.run_sync(load_engine, config, model)
    log.info(
        "engine.loaded",
        engine=engine.spec.name,
        model=model.name,
        num_blocks=engine.spec.num_blocks,
        duration_s=round(time.monotonic() - started_at, 3),
    )
    worker = process_name(config.bus, "w")
    async with open_bus(config.bus, Subjects(config.namespace), name=worker) as bus:
        await bus.ensure()
        with answer_scrapes(bus, worker):
            process = Worker(config, bus, engine, model, worker)
            with watchdog(lambda: process.has_failed):
                await serve(process)


def load_engine(config: Config, model: Model) -> Engine:
    """Import the configured engine and load the model; blocks for as long as that takes.

    Raises `BadConfig` when a package that the engine needs is not installed.
    """
    engine = config.worker.engine
    try:
        module = cast(_EngineModule, importlib.import_module(ENGINES[engine]))
        return module.load_engine(config, model.directory, model=model.name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        raise BadConfig(
            f"engine {engine!r} needs the package {error.name!r}, which is not installed: "
            f"pip install 'busway[{engine}]', or take --engine mock"
        ) from error


class Worker:
    """One engine in the pool of one model: a component for `bus.lifecycle.serve`."""

    def __init__(self, config: Config, bus: Bus, engine: Engine, model: Model, worker: str) -> None:
        self._config = config.worker
        self._bus = bus
        self._engine = engine
        self._model = model
        self._worker = worker
        spec = engine.spec
        kv_log = KvLog(worker, time.time_ns())
        self._events = EventPublisher(bus, bus.subjects.kv(slug(model.name), worker), kv_log)
        self._sequences = Sequences(
            engine,
            Publisher(bus, worker),
            self._events,
            self._on_change,
            publish_gap_s=config.worker.publish_gap_s,
        )
        served = Served(model.name, spec.max_model_len, spec.vocab_size, model.eos_token_ids)
        self._intake = Intake(
            bus, self._sequences, served, config.worker.slots, on_change=self._on_change, on_drain=self._drain
        )
        self._grace_s = config.worker.grace_s
        bus.on_reconnect(self._sequences.publisher.repeat_last)
        self._reporter = LoadReporter(bus, engine, self._sequences, kv_log, model.name)
        self._owners = OwnerWatch(bus, self._sequences)
        self._canary = Canary(
            spec, idle_s=config.worker.canary_s, stall_s=config.worker.stall_s, now=anyio.current_time()
        )
        self._stopping = anyio.Event()
        self._failure: Exception | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it is about to end because it cannot go on."""
        return self._failure is not None

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`, then drain: finish what runs within `grace_s`, hand the rest back to its owners.

        Raises `EngineDied` when the engine stopped by itself, after every owner was told.
        """
        async with anyio.create_task_group() as tasks:
            for work in (self._run_engine, self._watch_engine, self._reporter.run, self._events.run, self._owners.run):
                tasks.start_soon(self._guard, work, tasks.cancel_scope)
            await self._guard(self._serve, tasks.cancel_scope)
            tasks.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        subjects = self._bus.subjects
        controls = [
            self._bus.subscribe(subjects.ctl(whose), self._intake.on_control) for whose in (self._worker, ANY_WORKER)
        ]
        try:
            async with join_pool(self._bus, self._worker, self._model, self._engine.spec, self._config), self._pull():
                log.info("worker.started", worker=self._worker, model=self._model.name, slots=self._config.slots)
                await self._stopping.wait()
            with anyio.move_on_after(self._grace_s):
                await self._sequences.wait_idle()
            num_left = self._sequences.hand_back("draining", "the worker is leaving")
            await self._say_goodbye()
            log.info("worker.drained", worker=self._worker, num_handed_back=num_left)
        finally:
            for control in controls:
                control.unsubscribe()

    @asynccontextmanager
    async def _pull(self) -> AsyncIterator[None]:
        """Take jobs, while the context is open, from the worker's own lanes and from those that the pool shares."""
        async with AsyncExitStack() as stack:
            pulls = [
                await stack.enter_async_context(self._bus.pull(lane, self._intake.on_delivery))
                for lane in self._lanes()
            ]
            self._intake.open(pulls)
            try:
                yield
            finally:
                self._intake.close()

    def _lanes(self) -> Iterator[ConsumerSpec]:
        model = slug(self._model.name)
        for role in self._config.roles:
            name, filter_subject = own_lane(self._worker, role), self._bus.subjects.work(model, role, self._worker, "*")
            yield _lane(name, filter_subject, inactive_s=FORGET_LANE_S)
        for role, latency_class in product(self._config.roles, LATENCY_CLASSES):
            name = shared_lane(model, role, latency_class)
            yield _lane(name, self._bus.subjects.work(model, role, ANY_WORKER, latency_class))

    async def _run_engine(self) -> None:
        def on_step(step: Step) -> None:
            self._sequences.on_step(self._canary.take(step, anyio.current_time()))

        try:
            await self._engine.run(on_step)
        except Exception as error:
            await self._give_up(error)

    async def _watch_engine(self) -> None:
        """Ask the idle engine for a few tokens now and then; end when it is stuck or wrong."""
        while True:
            await anyio.sleep(self._canary.period_s)
            try:
                if self._canary.look(anyio.current_time(), len(self._sequences.ledger)):
                    self._engine.submit(self._canary.ask(self._sequences.next_key()))
            except EngineDied as error:
                await self._give_up(error)

    async def _give_up(self, error: Exception) -> None:
        """Give everything back to its owners and raise `EngineDied`."""
        log.error("engine.died", reason=str(error), exc_info=not isinstance(error, EngineDied))
        self._intake.close()
        self._sequences.hand_back(EngineDied.code, "the engine of the worker stopped")
        await self._say_goodbye()
        raise EngineDied(f"the engine stopped: {error}") from error

    async def _say_goodbye(self) -> None:
        """Wait until the broker has all that owners are to be told, for `FAREWELL_S` at most."""
        with anyio.move_on_after(FAREWELL_S, shield=True) as scope:
            try:
                while not self._sequences.flush():
                    await self._bus.flush(timeout_s=FAREWELL_S)
                await self._bus.flush(timeout_s=FAREWELL_S)
            except BusUnavailable:
                scope.cancel()
        if scope.cancel_called:
            log.warning("owners.left_untold")

    async def _guard(self, work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        """Keep what `work` raises for `run` to raise: a task group would wrap it."""
        try:
            await work()
        except Exception as error:
            self._failure = self._failure or error
            scope.cancel()

    def _drain(self, grace_s: float | None) -> None:
        if grace_s is not None:
            self._grace_s = grace_s
        self.stop()

    def _on_change(self) -> None:
        self._intake.grant()
        self._reporter.note_change()


def _lane(name: str, filter_subject: str, *, inactive_s: float | None = None) -> ConsumerSpec:
    return ConsumerSpec(
        stream="WORK",
        name=name,
        filter_subject=filter_subject,
        max_deliver=MAX_DELIVER,
        ack_wait_s=ACCEPT_WITHIN_S,
        inactive_s=inactive_s,
    )
