"""I/O. What `busway cache ls` prints: blocks and bytes of each space, and whose model that is."""

import time
from collections import Counter
from contextlib import aclosing

from msgspec.structs import replace

from bus.codec import codec
from bus.config import Config
from bus.connection import open_bus
from bus.errors import BusUnavailable, Malformed
from bus.messages.kv import TierBatch
from bus.protocol import Incoming
from bus.subjects import Subjects
from components.cli.terminal import say
from offload.key import Space
from offload.store import Store

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
BROKER_S = 1.0
"""Wait for a broker at most: names of models are not worth more."""

_batches = codec(TierBatch)


async def show_blocks(config: Config, store: Store) -> None:
    """Print what is in a store, the largest space first."""
    blocks, num_bytes, latest = Counter[Space](), Counter[Space](), dict[Space, float]()
    async with aclosing(store.listing()) as listing:
        async for part in listing:
            for each in part:
                space = each.key.space
                blocks[space] += 1
                num_bytes[space] += each.num_bytes
                latest[space] = max(latest.get(space, 0.0), each.expires_at)
    say(f"{store.name}  {store.location}  {blocks.total()} blocks, {_bytes(num_bytes.total())}")
    models = await _models(config) if blocks else {}
    for space, count in blocks.most_common():
        left_s = latest[space] - time.time()
        facts = f"{count:>9} blocks {_bytes(num_bytes[space]):>10}  the last until {duration(left_s)}"
        say(f"  {space.hex()}  {facts}  {models.get(space, '')}".rstrip())


async def _models(config: Config) -> dict[Space, str]:
    """Return the models of spaces, as far as workers told of them lately."""
    models: dict[Space, str] = {}

    def on_message(message: Incoming) -> None:
        try:
            model, _ = bus.subjects.parse(message.subject).fields
            models[Space(_batches.decode(message.payload).space)] = model
        except (Malformed, ValueError):
            pass  # workers count it

    try:
        async with open_bus(
            replace(config.bus, connect_timeout_s=BROKER_S), Subjects(config.namespace), name="cache"
        ) as bus:
            await bus.replay("KV", bus.subjects.tier("*", "*"), on_message)
    except BusUnavailable:
        pass  # blocks can be listed without a broker
    return models


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def duration(seconds: float) -> str:
    """Return seconds as people write them."""
    if seconds == float("inf"):
        return "the store has no room"
    for unit in ("d", "h", "m"):
        if seconds >= 2 * UNITS_S[unit]:
            return f"{seconds / UNITS_S[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"
