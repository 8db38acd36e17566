"""Pure. What processes hold when nobody wants anything from them."""

from collections.abc import Iterator

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
        moving=len(exchange.handovers._kept) + exchange.fetches.num_live,
        pinned=_pinned(worker._engine) if isinstance(worker._engine, TieredEngine) else 0,
    )


def _pinned(engine: TieredEngine) -> int:
    """Return the slots of host memory that are pinned or being filled, and questions to the engine that are open."""
    slots = engine._mover._host.slots
    num_filling = sum(state not in (_EMPTY, _READY) for state in slots._states)
    return sum(slots._pins) + num_filling + len(engine._pins) + len(engine._to_fill)


def held_by_router(name: str, router: Router) -> Iterator[str]:
    """Yield what a router holds, a line each."""
    for desk in router._desks.values():
        if len(desk.pool.queue):
            yield f"{name}: idle, but {len(desk.pool.queue)} requests wait in it"
        for worker, number in desk.pool.fleet.numbers.items():
            if count := desk.pool.fleet.state(number).num_requests:
                yield f"{name}: idle, but takes {worker} for busy with {count} requests"
