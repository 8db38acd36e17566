"""I/O. Replay against a system that runs: the same owners and jobs on its broker, in the time of the wall clock."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from bus.config import Config
from bus.connection import open_bus
from bus.errors import NoWorker
from bus.messages.fleet import ModelCard, WorkerCard
from bus.protocol import Bus
from bus.registry import new_id, watch_cards
from bus.subjects import Subjects
from components.replay.owner import Owner, open_owner


@asynccontextmanager
async def open_live(config: Config, num_frontends: int) -> AsyncIterator[tuple[list[Owner], ModelCard, int]]:
    """Join the system at `config.bus` as frontends of its first model; yield them, the model, and its worker count.

    The requests take the way that all requests take behind the doors of a frontend. Raises `BusUnavailable`, and
    `NoWorker` when nothing is served there.
    """
    async with AsyncExitStack() as stack:
        buses = []
        for _ in range(num_frontends):
            bus = open_bus(config.bus, Subjects(config.namespace), name=new_id("f"))
            buses.append(await stack.enter_async_context(bus))
        model, num_workers = await _look_around(buses[0])
        tasks = await stack.enter_async_context(anyio.create_task_group())
        owners = [await stack.enter_async_context(open_owner(bus, new_id("f"), model.model, tasks)) for bus in buses]
        yield owners, model, num_workers
        tasks.cancel_scope.cancel()


async def _look_around(bus: Bus) -> tuple[ModelCard, int]:
    models: dict[str, ModelCard] = {}
    workers: dict[str, WorkerCard] = {}

    def on_model(slug: str, card: ModelCard | None) -> None:
        if card is not None:
            models[slug] = card

    def on_worker(worker: str, card: WorkerCard | None) -> None:
        if card is not None:
            workers[worker] = card

    async with watch_cards(bus, "model", ModelCard, on_model), watch_cards(bus, "worker", WorkerCard, on_worker):
        for _, model in sorted(models.items()):
            num_workers = sum(card.model == model.model for card in workers.values())
            if num_workers:
                return model, num_workers
    raise NoWorker("no worker serves anything there: start some, as in `busway up --engine mock --workers 2`")
