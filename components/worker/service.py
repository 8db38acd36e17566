"""I/O. The worker process: from a model directory to a place in the pool, and out of it without losing a request."""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.access import process_name
from bus.codec import encode
from bus.config import Config
from bus.connection import open_bus
from bus.errors import BadConfig, BusUnavailable, EngineDied, Malformed
from bus.lifecycle import serve
from bus.messages.inference import Role, SetRoles
from bus.protocol import Bus
from bus.scrape import answer_scrapes
from bus.subjects import ANY_WORKER, Subjects, slug
from components.engines import Engine, Step
from components.transfer import Transfer, TransferOpener, open_transfer
from components.worker.canary import Canary
from components.worker.events import EventPublisher
from components.worker.exchange import Exchange
from components.worker.intake import STUCK_MESSAGE, Intake
from components.worker.jobs import Served
from components.worker.lanes import Lanes
from components.worker.load import LoadReporter
from components.worker.membership import join_pool
from components.worker.model import Model, read_model
from components.worker.owners import OwnerWatch
from components.worker.peers import Peers
from components.worker.publish import Publisher
from components.worker.roles import shared_lanes
from components.worker.sequences import Sequences
from components.worker.tiers import StoreFinder, open_tiers
from components.worker.watchdog import watchdog
from kv_events.log import KvLog
from offload.stores import make_stores

ENGINES = {"torch": "components.engines.torch", "mock": "components.engines.mock"}
"""Packages with `load_engine`; only the one that is asked for is imported."""

_OURS = ("bus", "components", "kv_events", "offload")
RETRY_S = 0.5
"""Until lanes are opened or closed again that could not be while the broker was away."""
FAREWELL_S = 2.0
"""Bound on telling the owners of unfinished sequences."""

MAX_ANSWERS = 64
"""Who awaits a change of roles at a time; more than these get no answer."""
OpenTransfer = Callable[[], AbstractAsyncContextManager[Transfer]]

log = structlog.get_logger()


class _EngineModule(Protocol):
    def load_engine(self, config: Config, directory: Path, *, model: str) -> Engine: ...


async def run_worker(config: Config) -> None:
    """Load the engine, join the pool, and work until SIGTERM and drained.

    Raises `BadConfig`, `BusUnavailable` or `StreamMismatch` at the start, `EngineDied` later.
    """
    worker = process_name(config.bus, "worker")
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
    async with open_bus(config.bus, Subjects(config.namespace), name=worker) as bus:
        await bus.ensure()
        opener = partial(open_transfer, transport=config.worker.transfer)
        with answer_scrapes(bus, worker):
            async with open_worker(
                config, bus, engine, model, worker, opener=opener, find_stores=make_stores
            ) as process:
                with watchdog(lambda: process.has_failed):
                    await serve(process)


@asynccontextmanager
async def open_worker(
    config: Config,
    bus: Bus,
    engine: Engine,
    model: Model,
    worker: str,
    *,
    opener: TransferOpener,
    find_stores: StoreFinder,
) -> AsyncIterator["Worker"]:
    """Put the engine on its tiers, and a worker around both; raises as `open_tiers`."""
    async with open_tiers(
        config.offload, engine, bus, model=model.name, worker=worker, open_transfer=opener, find_stores=find_stores
    ) as tiered:
        memory = tiered.memory
        own = None if memory is None else partial(opener, memory, worker)
        yield Worker(config, bus, tiered, model, worker, open_transfer=own)


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

    def __init__(
        self,
        config: Config,
        bus: Bus,
        engine: Engine,
        model: Model,
        worker: str,
        *,
        open_transfer: OpenTransfer | None = None,
    ) -> None:
        """Without `open_transfer`, every job is done here from its first token to its last."""
        self._config = config.worker
        self._bus = bus
        self._engine = engine
        self._model = model
        self._worker = worker
        spec = engine.spec
        kv_log = KvLog(worker, time.time_ns())
        self._events = EventPublisher(bus, bus.subjects.kv(slug(model.name), worker), kv_log)
        self._transfer_wanted = anyio.Event()
        self._transfer_opened = anyio.Event()
        self._peers = Peers(worker, model.name, self._turn_soon)
        self._exchange = Exchange(
            bus,
            worker,
            engine,
            self._peers,
            roles=config.worker.roles,
            can_transfer=open_transfer is not None,
            on_handed=self._end_handed,
            on_wanted=self._transfer_wanted.set,
        )
        self._sequences = Sequences(
            engine,
            Publisher(bus, worker),
            self._events,
            self._exchange,
            self._on_change,
            publish_gap_s=config.worker.publish_gap_s,
        )
        served = Served(model.name, spec.max_model_len, spec.vocab_size, model.eos_token_ids)
        self._intake = Intake(
            bus,
            self._sequences,
            self._exchange,
            served,
            config.worker.slots,
            on_change=self._on_change,
            on_drain=self._drain,
            on_roles=self._set_roles,
        )
        self._lanes = Lanes(bus, worker, slug(model.name), self._intake.on_delivery)
        self._open_transfer = open_transfer
        self._answers: list[str] = []
        """Where it is awaited that roles have changed."""
        self._turn = anyio.Event()
        self._grace_s = config.worker.grace_s
        bus.on_reconnect(self._sequences.publisher.repeat_last)
        self._reporter = LoadReporter(bus, engine, self._sequences, kv_log, model=model.name, exchange=self._exchange)
        self._owners = OwnerWatch(bus, self._sequences)
        self._canary = Canary(
            spec, idle_s=config.worker.canary_s, stall_s=config.worker.stall_s, now=anyio.current_time()
        )
        self._is_stopping = False
        self._failure: Exception | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it is about to end because it cannot go on."""
        return self._failure is not None

    def stop(self) -> None:
        self._is_stopping = True
        self._turn_soon()

    async def run(self) -> None:
        """Serve until `stop`, then drain: finish what runs within `grace_s`, hand the rest back to its owners.

        Raises `EngineDied` when the engine stopped by itself, after every owner was told.
        """
        async with anyio.create_task_group() as tasks:
            for work in (self._run_engine, self._watch_engine, self._reporter.run, self._events.run, self._owners.run):
                tasks.start_soon(self._guard, work, tasks.cancel_scope)
            self._exchange.start(tasks)
            tasks.start_soon(self._guard, self._keep_transfer, tasks.cancel_scope)
            await self._guard(partial(self._serve, tasks), tasks.cancel_scope)
            tasks.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, tasks: TaskGroup) -> None:
        subjects = self._bus.subjects
        controls = [
            self._bus.subscribe(subjects.ctl(whose), self._intake.on_control) for whose in (self._worker, ANY_WORKER)
        ]
        try:
            await self._prepare_transfer()
            async with (
                self._peers.watch(self._bus),
                join_pool(self._bus, self._worker, self._model, self._engine.spec, self._config) as tell_roles,
            ):
                await self._pull(tasks, tell_roles)
            with anyio.move_on_after(self._grace_s):
                await self._sequences.wait_idle()
            num_left = self._sequences.hand_back("draining", "the worker is leaving")
            await self._say_goodbye()
            log.info("worker.drained", worker=self._worker, num_handed_back=num_left)
        finally:
            for control in controls:
                control.unsubscribe()

    async def _pull(self, tasks: TaskGroup, tell_roles: Callable[[frozenset[Role]], Awaitable[None]]) -> None:
        """Take jobs until `stop`, from the lanes that the worker's roles and its peers' leave to it."""
        told: frozenset[Role] = frozenset(self._config.roles)
        has_started = False
        try:
            while not self._is_stopping:
                self._turn = anyio.Event()
                roles: frozenset[Role] = frozenset() if self._intake.is_stuck else self._exchange.roles
                shared = shared_lanes(roles, self._peers.roles)
                if not shared <= {"both", "encode"}:
                    self._transfer_wanted.set()
                try:
                    await self._lanes.change(roles, shared, tasks)
                    self._intake.open(self._lanes.pulls)
                    if roles != told:
                        await tell_roles(roles)
                        told = roles
                    self._answer_roles(roles)
                except BusUnavailable as error:
                    if not has_started:
                        raise
                    log.warning("lanes.not_changed", reason=str(error))
                    with anyio.move_on_after(RETRY_S):
                        await self._turn.wait()
                    continue
                if not has_started:
                    has_started = True
                    log.info("worker.started", worker=self._worker, model=self._model.name, slots=self._config.slots)
                await self._turn.wait()
        finally:
            self._intake.close()
            self._lanes.close()

    def _set_roles(self, roles: frozenset[Role], reply: str) -> None:
        log.info("roles.changed", worker=self._worker, before=sorted(self._exchange.roles), after=sorted(roles))
        self._exchange.roles = roles
        if reply and len(self._answers) < MAX_ANSWERS:
            self._answers.append(reply)
        self._turn_soon()

    def _answer_roles(self, roles: frozenset[Role]) -> None:
        """Tell those who await it that these are the roles now; after another change they wait for the next turn."""
        if roles != self._exchange.roles:
            return
        answers, self._answers = self._answers, []
        for reply in answers:
            try:
                self._bus.publish(reply, encode(SetRoles(roles=sorted(roles))))
            except (BusUnavailable, Malformed):
                log.warning("roles.not_answered")

    async def _prepare_transfer(self) -> None:
        """Be able to hand over or take over before the first job comes, if that is the worker's role."""
        if self._open_transfer is not None and not set(self._config.roles) <= {"both", "encode"}:
            self._transfer_wanted.set()
            await self._transfer_opened.wait()

    async def _keep_transfer(self) -> None:
        """Open the transfer when it is wanted for the first time: with NIXL that takes seconds and memory."""
        if self._open_transfer is None:
            return
        await self._transfer_wanted.wait()
        async with self._open_transfer() as transfer:
            self._exchange.connect(transfer)
            self._transfer_opened.set()
            await anyio.sleep_forever()

    def _end_handed(self, key: int, is_taken: bool) -> None:
        self._sequences.end_handed(key, is_taken)

    def _turn_soon(self) -> None:
        self._turn.set()

    async def _run_engine(self) -> None:
        clock = asyncio.get_running_loop().time  # what engines call back has no context that anyio would know

        def on_step(step: Step) -> None:
            self._sequences.on_step(self._canary.take(step, clock()))

        try:
            await self._engine.run(on_step, self._exchange.on_note)
        except Exception as error:
            await self._give_up(error)

    async def _watch_engine(self) -> None:
        """Ask the idle engine for a few tokens now and then; end when it is wrong, or stuck for good."""
        while True:
            await anyio.sleep(self._canary.period_s)
            now = anyio.current_time()
            try:
                if self._canary.look(now, self._sequences.num_computing):
                    self._engine.submit(self._canary.ask(self._sequences.next_key()))
            except EngineDied as error:
                await self._give_up(error)
            self._note_stuck(self._canary.is_stuck(now, self._engine.load()))

    def _note_stuck(self, is_stuck: bool) -> None:
        """While its engine is stuck a worker has no role, and nobody waits for it."""
        if is_stuck == self._intake.is_stuck:
            return
        self._intake.is_stuck = is_stuck
        if is_stuck:
            num_left = self._sequences.hand_back(EngineDied.code, STUCK_MESSAGE, stepped_at=self._canary.stepped_at)
            log.warning("engine.stuck", num_handed_back=num_left)
        else:
            log.info("engine.goes_on")
        self._turn_soon()

    async def _give_up(self, error: Exception) -> None:
        """Give everything back to its owners and raise `EngineDied`."""
        log.error("engine.died", reason=str(error), exc_info=not isinstance(error, EngineDied))
        self._intake.close()
        message = "the engine of the worker stopped"
        self._sequences.hand_back(EngineDied.code, message, stepped_at=self._canary.stepped_at)
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
