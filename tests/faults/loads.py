"""I/O. What workers hold now, as they say on the bus: every 250 ms, and 50 ms after a change."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from bus.config import Config
from bus.connection import open_bus
from bus.messages.fleet import WorkerLoad
from bus.protocol import Incoming
from bus.subjects import Subjects
from bus.typed import subscribe_typed
from tests.faults.system import until


class Loads:
    """How many requests each worker held when it said so last."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.held.values())

    async def wait_at_most(self, count: int, within_s: float) -> float:
        """Wait until all workers together hold so few; return the seconds that it took, fail after `within_s`."""
        at = time.monotonic()
        await until(lambda: self.total <= count, within_s)
        return time.monotonic() - at


@asynccontextmanager
async def watch_loads(config: Config) -> AsyncIterator[Loads]:
    """Listen while the context is open."""
    loads = Loads()

    def on_load(load: WorkerLoad, incoming: Incoming) -> None:
        loads.held[load.worker] = load.running + load.waiting

    async with open_bus(config.bus, Subjects(config.namespace), name="looker") as bus:
        subscribe_typed(bus, bus.subjects.load("*", "*"), WorkerLoad, on_load)
        yield loads


async def read_loads(config: Config, *, within_s: float = 0.6) -> dict[str, int]:
    """Return by worker how many requests it holds; of those that say so within that time."""
    async with watch_loads(config) as loads:
        await anyio.sleep(within_s)
        return loads.held
