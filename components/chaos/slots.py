"""I/O. Whether the workers let go of everything: what a load report says once nobody asks any more."""

import anyio

from bus.config import Config
from bus.connection import open_bus
from bus.errors import BusUnavailable
from bus.messages.fleet import WorkerLoad
from bus.protocol import Incoming
from bus.subjects import Subjects
from bus.typed import subscribe_typed

FREED_WITHIN_S = 10.0
LISTEN_S = 1.0
"""Four heartbeats: who says nothing for so long is not there."""


async def count_leaked(config: Config) -> int:
    """Return how many requests the workers still hold, after the time they have to let go.

    Counts other clients' requests too: nobody else should ask meanwhile. Raises `BusUnavailable` when none is heard.
    """
    held: dict[str, int] = {}

    def on_load(load: WorkerLoad, incoming: Incoming) -> None:
        held[load.worker] = load.running + load.waiting

    async with open_bus(config.bus, Subjects(config.namespace), name="chaos") as bus:
        subscription = subscribe_typed(bus, bus.subjects.load("*", "*"), WorkerLoad, on_load)
        try:
            with anyio.move_on_after(FREED_WITHIN_S):
                while True:
                    held.clear()
                    await anyio.sleep(LISTEN_S)
                    if held and not any(held.values()):
                        return 0
        finally:
            subscription.unsubscribe()
    if not held:
        raise BusUnavailable("no worker is heard on the bus")
    return sum(held.values())
