"""I/O. Whether the workers let go of everything: what a load report says once nobody asks any more."""

import anyio
import msgspec

from bus.config import Config
from bus.connection import open_bus
from bus.errors import BusUnavailable
from bus.messages.fleet import WorkerLoad
from bus.protocol import Incoming
from bus.subjects import Subjects
from bus.typed import subscribe_typed

FREED_WITHIN_S = 15.0
"""Blocks that nobody came to read are kept until their lease ends (`components.transfer.open.LEASE_S`)."""
LISTEN_S = 1.0
"""Four heartbeats: who says nothing for so long is not there."""


class Held(msgspec.Struct, frozen=True):
    """What workers have in use; blocks that are only cached, for whoever may want them, are free."""

    requests: int = 0
    blocks: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests or self.blocks)


async def find_leaks(config: Config) -> Held:
    """Return what the workers still hold, after the time they have to let go.

    Counts what is other clients' too, and what they have pinned: nobody else should ask meanwhile. Raises
    `BusUnavailable` when no worker is heard.
    """
    held: dict[str, Held] = {}

    def on_load(load: WorkerLoad, incoming: Incoming) -> None:
        held[load.worker] = Held(load.running + load.waiting, load.num_blocks - load.free_blocks)

    async with open_bus(config.bus, Subjects(config.namespace), name="chaos") as bus:
        subscription = subscribe_typed(bus, bus.subjects.load("*", "*"), WorkerLoad, on_load)
        try:
            with anyio.move_on_after(FREED_WITHIN_S):
                while True:
                    held.clear()
                    await anyio.sleep(LISTEN_S)
                    if held and not any(held.values()):
                        return Held()
        finally:
            subscription.unsubscribe()
    if not held:
        raise BusUnavailable("no worker is heard on the bus")
    return Held(sum(each.requests for each in held.values()), sum(each.blocks for each in held.values()))
