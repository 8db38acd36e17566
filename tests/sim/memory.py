"""Pure. Whom a process remembers: what it keeps of others must not outlast them for long."""

import gc
from collections import deque
from collections.abc import Collection, Iterator
from contextvars import Context
from types import AsyncGeneratorType, CoroutineType, FunctionType, ModuleType
from typing import Any

from bus.metrics import REGISTRY
from bus.protocol import Entry
from bus.testing import MemoryBroker
from bus.testing.bucket import MemoryStore
from bus.testing.store import MemoryConsumer, MemoryStream
from tests.sim.loop import SimLoop
from tests.sim.stage import Stage
from tests.sim.trace import Trace
from tests.sim.weather import Weather

_NOT_ITS_OWN = (
    *(ModuleType, type, Context),
    *(MemoryBroker, MemoryStream, MemoryStore, MemoryConsumer, SimLoop, Stage, Trace, Weather),
)
"""Where the search ends: what all share, and what runs."""
_VARIABLES = (CoroutineType, AsyncGeneratorType, Entry)
"""What holds one name at a time: the last one that something was done for."""
SHOWN_STEPS = 5


def find_remembered(roots: Collection[object], names: Collection[str]) -> list[str]:
    """Return each place below these objects where one of the names is, a line each; labels of metrics included."""
    found: list[str] = []
    holders: dict[int, Any] = {}
    seen: dict[int, Any] = {id(each): each for each in (roots, names, *roots)}
    queue: deque[Any] = deque(roots)
    while queue:
        holder = queue.popleft()
        for held in _referents(holder):
            if isinstance(held, str):
                if not isinstance(holder, _VARIABLES) and any(name in held for name in names):
                    found.append(" < ".join([repr(held), *_walk_up(holder, holders)]))
            elif id(held) not in seen and not isinstance(held, _NOT_ITS_OWN):
                seen[id(held)] = held
                holders[id(held)] = holder
                queue.append(held)
    labels = {value for family in REGISTRY.collect() for each in family.samples for value in each.labels.values()}
    return found + [f"metrics: {value}" for value in sorted(labels) if any(name in value for name in names)]


def _referents(holder: Any) -> list[Any]:
    if isinstance(holder, FunctionType):
        return [holder.__closure__, holder.__defaults__, holder.__kwdefaults__]
    if isinstance(holder, dict):
        return [*holder, *holder.values()]  # the collector passes over keys that are strings
    return gc.get_referents(holder)


def _walk_up(holder: Any, holders: dict[int, Any]) -> Iterator[str]:
    for _ in range(SHOWN_STEPS):
        yield type(holder).__name__
        if id(holder) not in holders:
            return
        holder = holders[id(holder)]
