"""Pure. What processes hold when nobody wants anything from them."""

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import xor

from bus.messages.kv import Tier
from components.engines.mock.engine import MockEngine
from components.router.service import Router
from components.worker.offload import TieredEngine
from components.worker.service import Worker
from offload.slots import _EMPTY, _READY
from tests.history import Idle
from tests.sim.wire import Host


def look_at_worker(name: str, worker: Worker, host: Host) -> Idle:
    """Return what a worker holds, its leases and its part of host memory included."""
    load, spec, exchange = worker._engine.load(), worker._engine.spec, worker._exchange
    return Idle(
        name,
        len(worker._sequences.ledger),
        load.running,
        load.waiting,
        load.free_blocks,
        spec.num_blocks,
        leases=sum(len(agent._leases) + len(agent._sources) for process, agent in host.agents if process == name),
        moving=len(exchange.handovers._kept) + len(exchange.fetches._live),
        pinned=_pinned(worker._engine) if isinstance(worker._engine, TieredEngine) else 0,
    )


def _pinned(engine: TieredEngine) -> int:
    """Return the slots of host memory that are pinned or being filled, and questions to the engine that are open."""
    slots = engine._mover._host.slots
    num_filling = sum(state not in (_EMPTY, _READY) for state in slots._states)
    return sum(slots._pins) + num_filling + len(engine._pins) + len(engine._to_fill)


def look_at_router(name: str, router: Router, workers: Mapping[str, Worker]) -> Iterator[str]:
    """Yield what a router wrongly believes of idle workers, and what it holds itself, a line each."""
    for desk in router._desks.values():
        if len(desk.pool.queue):
            yield f"{name}: idle, but {len(desk.pool.queue)} requests wait in it"
        for worker, number in desk.pool.fleet.numbers.items():
            if count := desk.pool.fleet.state(number).num_requests:
                yield f"{name}: idle, but takes {worker} for busy with {count} requests"
        index = desk.pool._scorer._index
        for worker in sorted({*index.workers(), *workers}):
            for tier, hashes in _held_hashes(workers.get(worker)).items():
                known = index._holding(worker, tier)
                held = (len(hashes), reduce(xor, hashes, 0))
                if (known.num_blocks, known.xor) != held:
                    yield f"{name}: knows {known.num_blocks} {tier} blocks of {worker}, which has {held[0]}, or others"


def _held_hashes(worker: Worker | None) -> dict[Tier, list[int]]:
    """Return what is in the memory of a worker, by the books of engine and tier; nothing of one that is gone."""
    held: dict[Tier, list[int]] = {"device": [], "host": []}
    if worker is None:
        return held
    if isinstance(worker._engine, TieredEngine):
        slots = worker._engine._mover._host.slots
        held["host"] = [slots._index.hashes[slot] for slot, state in enumerate(slots._states) if state == _READY]
    held["device"] = list(find_engine(worker)._pool._block_of)
    return held


def find_engine(worker: Worker) -> MockEngine:
    """Return the engine below a worker's tiers."""
    engine = worker._engine
    if isinstance(engine, TieredEngine):
        engine = engine._engine
    assert isinstance(engine, MockEngine)
    return engine
