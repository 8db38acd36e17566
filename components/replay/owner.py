"""I/O. Owns requests on a bus, as a frontend does: sends jobs, takes tokens, makes lost attempts again."""

import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.codec import encode
from bus.errors import BuswayError, Malformed
from bus.messages.fleet import FrontendCard, RouterCard
from bus.messages.inference import StepBatch
from bus.metrics import MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming
from bus.registry import keep_card, watch_cards
from bus.subjects import ANY_WORKER, slug
from bus.typed import subscribe_typed
from bus.version import VERSION
from components.replay.book import Arrival, Book, Open

log = structlog.get_logger()


class Owner:
    """One frontend without doors. Its requests go to the routers while there are any, else to the shared lane."""

    def __init__(self, bus: Bus, frontend: str, model: str, tasks: TaskGroup) -> None:
        """`tasks` runs what is sent again."""
        self.book = Book()
        self._bus = bus
        self._frontend = frontend
        self._model = model
        self._tasks = tasks
        self._routers: set[str] = set()
        self._news = anyio.Event()

    async def send(self, arrival: Arrival) -> None:
        """Send a request that arrives now; one that the bus does not take has failed."""
        await self._append(self.book.open(arrival, anyio.current_time()))

    async def wait_done(self, patience_s: float) -> None:
        """Wait until every request has ended; those that no worker says a word about for `patience_s` have failed."""
        while self.book:
            self._news = anyio.Event()
            with anyio.move_on_after(patience_s) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                log.error("replay.stalled", num_requests=len(self.book), patience_s=patience_s)
                self.book.give_up(anyio.current_time(), "silence")

    def on_batch(self, batch: StepBatch, _incoming: Incoming) -> None:
        """Take a step of a worker, or a router's refusal."""
        try:
            again = self.book.take(batch, anyio.current_time())
        except Malformed:
            MALFORMED_MESSAGES.labels(family="out").inc()
            return
        for request in again:
            self._tasks.start_soon(self._append, request)
        if not self._news.is_set():
            self._news.set()

    def on_router(self, router: str, card: RouterCard | None) -> None:
        """Note that a router came or left; when the last one left, what it may have held goes out again."""
        if card is not None and (not card.models or self._model in card.models):
            self._routers.add(router)
        elif router in self._routers:
            self._routers.remove(router)
            if not self._routers:
                for request in self.book.reclaim():
                    self._tasks.start_soon(self._append, request)

    async def _append(self, request: Open) -> None:
        arrival, subjects, model = request.arrival, self._bus.subjects, slug(self._model)
        if self._routers:
            subject = subjects.req(model, arrival.latency_class, slug(arrival.tenant))
        else:
            subject = subjects.work(model, "both", ANY_WORKER, arrival.latency_class)
        payload = encode(self.book.job(request, self._frontend, self._model, time.time()))
        try:
            await self._bus.append(subject, payload)
        except BuswayError as error:
            self.book.fail(request, anyio.current_time(), error.code)


@asynccontextmanager
async def open_owner(bus: Bus, frontend: str, model: str, tasks: TaskGroup) -> AsyncIterator[Owner]:
    """Be a frontend of the fleet while the context is open."""
    owner = Owner(bus, frontend, model, tasks)
    subscription = subscribe_typed(bus, bus.subjects.out(frontend, "*"), StepBatch, owner.on_batch)
    card = FrontendCard(
        frontend=frontend,
        url="",
        host=socket.gethostname(),
        pid=os.getpid(),
        version=VERSION,
        started_at=time.time(),
    )
    try:
        async with (
            keep_card(bus, f"frontend.{frontend}", card),
            watch_cards(bus, "router", RouterCard, owner.on_router),
        ):
            yield owner
    finally:
        subscription.unsubscribe()
