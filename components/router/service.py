"""I/O. The router process: hears workers and other routers, and keeps one desk for each model."""

import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.access import process_name
from bus.codec import codec
from bus.config import Config
from bus.connection import open_bus
from bus.errors import BuswayError, Malformed
from bus.gone import watch_gone
from bus.lifecycle import serve, spare_living
from bus.messages.fleet import RouterCard, WorkerCard, WorkerLoad
from bus.messages.route import RouteBatch
from bus.metrics import MALFORMED_MESSAGES, ROUTER_WAITING, ROUTER_WORKERS
from bus.protocol import Bus, Incoming
from bus.registry import keep_card, watch_cards
from bus.scrape import answer_scrapes
from bus.subjects import Subjects, slug
from bus.typed import subscribe_typed
from bus.version import VERSION
from components.router.desk import Desk
from components.router.lead import SILENCE_S
from components.router.pick import serve_picks
from components.router.pool import Pool
from kv_events.follower import Follower, follow
from kv_events.index import PrefixIndex

TICK_S = 0.1
STALL_S = 1.0
"""A tick that comes so late says that this process stood still: then the silence of workers proves nothing."""
RETRY_S = 0.5
MAX_MODELS = 256
CARD_TTL_S = 3
"""Frontends send requests to a router that was killed for so long, if it was the only one."""

log = structlog.get_logger()
_batches = codec(RouteBatch)


async def run_router(config: Config) -> None:
    """Route until SIGTERM; raise `BusUnavailable` or `StreamMismatch` at the start."""
    router = process_name(config.bus, "router")
    async with open_bus(config.bus, Subjects(config.namespace), name=router, has_echo=False) as bus:
        await bus.ensure()
        with answer_scrapes(bus, router):
            spare_living()
            await serve(Router(config, bus, router))


class Router:
    """One router on a bus that is open: a component for `bus.lifecycle.serve`."""

    def __init__(self, config: Config, bus: Bus, router: str, *, wall: Callable[[], float] = time.time) -> None:
        """`wall` tells the time of day in unix seconds; everything else goes by the event loop's clock."""
        self._bus = bus
        self._router = router
        self._config = config.router
        self._wall = wall
        self._stopping = anyio.Event()
        self._failure: Exception | None = None
        self._cards: dict[str, WorkerCard] = {}
        self._desks: dict[str, Desk] = {}
        self._followers: dict[str, Follower] = {}
        self._tasks: TaskGroup

    def stop(self) -> None:
        """Take nothing new, give back what waits, finish what is on its way."""
        self._stopping.set()
        for desk in self._desks.values():
            desk.stop()

    async def run(self) -> None:
        """Route until stopped; what raises stops it."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            await self._guard(self._serve)
            self.stop()
        if self._failure is not None:
            raise self._failure
        log.info("router.drained", router=self._router)

    def find(self, model: str) -> Desk | None:
        """Return the desk of a model (by slug), if it has one."""
        return self._desks.get(model)

    async def _serve(self) -> None:
        subjects = self._bus.subjects
        async with AsyncExitStack() as stack:
            for subscription in (
                subscribe_typed(self._bus, subjects.load("*", "*"), WorkerLoad, self._on_load),
                self._bus.subscribe(subjects.route("*", "*"), self._on_route),
            ):
                stack.callback(subscription.unsubscribe)
            await stack.enter_async_context(watch_cards(self._bus, "worker", WorkerCard, self._on_worker))
            await stack.enter_async_context(serve_picks(self._bus, self._config, self.find))
            await stack.enter_async_context(
                keep_card(self._bus, f"router.{self._router}", self._card(), ttl_s=CARD_TTL_S)
            )
            stack.enter_context(watch_gone(self._bus, self._on_gone))
            log.info("router.started", router=self._router, mode=self._config.mode, num_workers=len(self._cards))
            await self._tick_until_stopped()

    async def _tick_until_stopped(self) -> None:
        ticked_at = anyio.current_time()
        while not self._stopping.is_set():
            with anyio.move_on_after(TICK_S):
                await self._stopping.wait()
            now = anyio.current_time()
            is_deaf = now - ticked_at > STALL_S or not self._bus.is_connected
            is_late = is_deaf or now - ticked_at > SILENCE_S
            ticked_at = now
            for desk in self._desks.values():
                if is_late:
                    desk.lead.excuse_silence(now)
                if is_deaf:
                    desk.pool.fleet.excuse_silence(now)
                for worker in desk.pool.fleet.silent(now):
                    log.warning("worker.silent", worker=worker)
                    desk.lose(worker)
                desk.tick()
            ROUTER_WAITING.set(sum([len(desk.pool.queue) for desk in self._desks.values()]))
            ROUTER_WORKERS.set(sum([len(desk.pool.fleet.present) for desk in self._desks.values()]))

    def _open_desk(self, model: str) -> Desk | None:
        """Begin to serve a model, unless there are too many."""
        if len(self._desks) >= MAX_MODELS:
            return None
        index = PrefixIndex()
        pool = Pool(self._config, index, random.Random(f"{self._config.seed}:{self._router}"))
        desk = self._desks[slug(model)] = Desk(self._bus, self._router, model, pool, wall=self._wall)
        self._tasks.start_soon(self._guard, lambda: self._keep_desk(model, index, desk))
        return desk

    async def _keep_desk(self, model: str, index: PrefixIndex, desk: Desk) -> None:
        """Serve one model until stopped; a broker that refuses is asked again."""
        while not self._stopping.is_set():
            try:
                async with AsyncExitStack() as stack:
                    if self._config.mode == "kv":
                        follower = await stack.enter_async_context(follow(self._bus, slug(model), index))
                        self._followers[slug(model)] = follower
                        stack.callback(self._followers.pop, slug(model))
                    stack.push_async_callback(desk.drain)
                    stack.callback(desk.rest)
                    log.info("model.opened", model=model)
                    while not self._stopping.is_set():
                        await desk.wait_turn(is_leading=True)
                        await self._lead(desk)
            except BuswayError as error:
                log.warning("model.not_opened", model=model, reason=str(error))
                with anyio.move_on_after(RETRY_S):
                    await self._stopping.wait()

    async def _lead(self, desk: Desk) -> None:
        """Take the requests of a model while this router leads; then give back what waits."""
        if self._stopping.is_set():
            return
        async with AsyncExitStack() as pulls:
            await desk.open(pulls)
            await desk.wait_turn(is_leading=False)
        desk.close()

    def _on_worker(self, worker: str, card: WorkerCard | None) -> None:
        if card is None or not card.roles:
            # Gone, or stuck for a while.
            gone = self._cards.pop(worker, None)
            desk = self._desks.get(slug(gone.model)) if gone is not None else None
            if desk is not None:
                desk.lose(worker)
            return
        self._cards[worker] = card
        desk = self._desks.get(slug(card.model)) or self._open_desk(card.model)
        if desk is not None:
            desk.pool.join(card, anyio.current_time())
            desk.work()

    def _on_gone(self, name: str) -> None:
        """A process lost its connection: a worker's requests go to others, a leader's place to the next."""
        now = anyio.current_time()
        for desk in self._desks.values():
            desk.lead.lose(name, now)
            if name in desk.pool.fleet.numbers:
                log.warning("worker.disconnected", worker=name)
                desk.lose(name)

    def _on_load(self, load: WorkerLoad, incoming: Incoming) -> None:
        if not incoming.subject.endswith(f".{load.worker}"):
            MALFORMED_MESSAGES.labels(family="load").inc()
            return
        model = slug(load.model)
        desk = self._desks.get(model)
        if desk is None:
            return
        if (follower := self._followers.get(model)) is not None:
            follower.hear(load)
        pool, now = desk.pool, anyio.current_time()
        if load.worker not in pool.fleet.numbers:
            card = self._cards.get(load.worker)
            if card is None:
                return
            # It counted as dead, and is not.
            pool.join(card, now)
        pool.report(load, now)
        if len(pool.queue):
            desk.work_soon()

    def _on_route(self, incoming: Incoming) -> None:
        if incoming.subject.endswith(f".{self._router}"):
            return  # our own
        desk = self._desks.get(self._bus.subjects.parse(incoming.subject).fields[0])
        if desk is None:
            return
        now = anyio.current_time()
        try:
            batch = _batches.decode(incoming.payload)
            if batch.is_leading:
                desk.hear_leader(batch.router)
            for placed in batch.placed:
                desk.pool.hear(placed, now)
        except Malformed:
            MALFORMED_MESSAGES.labels(family="route").inc()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Keep what `work` raises for `run` to raise: a task group would wrap it."""
        try:
            await work()
        except Exception as error:
            self._failure = self._failure or error
            self.stop()

    def _card(self) -> RouterCard:
        return RouterCard(
            router=self._router,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            started_at=self._wall(),
        )
