"""I/O. What workers hold now, as they say on the bus."""

import anyio

from bus.config import Config
from bus.connection import open_bus
from bus.messages.fleet import WorkerLoad
from bus.protocol import Incoming
from bus.subjects import Subjects
from bus.typed import subscribe_typed


async def read_loads(config: Config, *, within_s: float = 0.6) -> dict[str, int]:
    """Return by worker how many requests it holds; of those that say so within that time."""
    held: dict[str, int] = {}

    def on_load(load: WorkerLoad, incoming: Incoming) -> None:
        held[load.worker] = load.running + load.waiting

    async with open_bus(config.bus, Subjects(config.namespace), name="looker") as bus:
        subscribe_typed(bus, bus.subjects.load("*", "*"), WorkerLoad, on_load)
        await anyio.sleep(within_s)
    return held
