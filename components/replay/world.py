"""I/O. A whole system in one event loop: broker in memory, real workers with mock engines, owners under load."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from bus.config import Config, MockConfig, RouterConfig, WorkerConfig
from bus.protocol import Bus
from bus.testing import MemoryBroker
from components.engines.mock.engine import MockEngine
from components.replay.book import Arrival
from components.replay.owner import Owner, open_owner
from components.router.service import Router
from components.worker.model import Model
from components.worker.service import Worker

MODEL = "replay"
VOCAB_SIZE = 65_536

PATIENCE_S = 60.0
"""How long nothing may be heard before the requests that are left count as failed."""

AT_ONCE_S = 1e-6
"""Arrivals that are no further apart are sent in one turn of the event loop: sums of times have rounding errors."""

SETTLE_S = 1.0
"""From the start of the processes to the first request: cards, loads and lanes are known to everybody by then."""

DYNAMO_MOCKER = MockConfig(
    num_blocks=16_384,
    block_size=64,
    max_running=256,
    max_batch_tokens=8192,
    max_model_len=131_072,
    prefill_base_s=1.650142e-2,
    prefill_token_s=1.518344e-5,
    prefill_token_squared_s=4.209989e-10,
    decode_base_s=5.74e-3,
    kv_token_s=54.01e-3 / (16_384 * 64),
    kv_token_squared_s=-25.74e-3 / (16_384 * 64) ** 2,
)
"""The engine that NVIDIA Dynamo's mocker simulates by default (1.6): limits and timing polynomials. In milliseconds
there: 4.209989e-7 t^2 + 1.518344e-2 t + 16.50142 for t prompt tokens, and -25.74 p^2 + 54.01 p + 5.74 for a share p of
the cache in context."""


Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
"""Opens a connection to the broker under a name."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What the system under load consists of."""

    num_workers: int = 8
    num_routers: int = 0
    """0: requests go to the lane that all workers share."""
    num_frontends: int = 1
    slots: int = 256
    engine: MockConfig = DYNAMO_MOCKER
    router: RouterConfig = RouterConfig()


async def replay(world: World, arrivals: Iterable[Arrival]) -> list[Owner]:
    """Run `arrivals` (in order of time, read lazily) against a system of its own; return the owners with their books.

    The requests go to the frontends in turn. Ends when every request has ended.
    """
    async with open_world(world, MemoryBroker().connect) as owners:
        await drive(owners, arrivals)
        return owners


async def drive(owners: list[Owner], arrivals: Iterable[Arrival]) -> None:
    """Send `arrivals` when they are due, whatever became of those before, and wait until all have ended."""
    started_at = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number, arrival in enumerate(arrivals):
            delay_s = started_at + arrival.at_s - anyio.current_time()
            if delay_s > AT_ONCE_S:
                await anyio.sleep(delay_s)
            tasks.start_soon(owners[number % len(owners)].send, arrival)
    for owner in owners:
        await owner.wait_done(PATIENCE_S)


@asynccontextmanager
async def open_world(world: World, connect: Connect) -> AsyncIterator[list[Owner]]:
    """Start the system in this event loop on any broker, and cancel it at the end."""
    async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
        for number in range(world.num_workers):
            tasks.start_soon(_run_worker, world, connect, f"w-{number}")
        for number in range(world.num_routers):
            tasks.start_soon(run_router, world, connect, f"r-{number}")
        owners = []
        for number in range(world.num_frontends):
            bus = await stack.enter_async_context(connect(f"f-{number}"))
            await bus.ensure()
            owners.append(await stack.enter_async_context(open_owner(bus, f"f-{number}", MODEL, tasks)))
        await anyio.sleep(SETTLE_S)
        yield owners
        tasks.cancel_scope.cancel()


async def _run_worker(world: World, connect: Connect, name: str) -> None:
    model = Model(
        name=MODEL,
        directory=Path(),
        vocab_size=VOCAB_SIZE,
        max_model_len=world.engine.max_model_len,
        eos_token_ids=frozenset(),
        files={},
    )
    # Each step's tokens at their own time: what steps share messages for is CPU time, which costs nothing here.
    worker = WorkerConfig(engine="mock", slots=world.slots, publish_gap_s=0.0)
    engine = MockEngine(world.engine, model=MODEL, vocab_size=VOCAB_SIZE)
    async with connect(name) as bus:
        await bus.ensure()
        await Worker(Config(worker=worker, mock=world.engine), bus, engine, model, name).run()


async def run_router(world: World, connect: Connect, name: str) -> None:
    """Run one router of a world until cancelled; what waits in it then is not given back."""
    async with connect(name) as bus:
        await bus.ensure()
        await Router(Config(router=world.router), bus, name).run()
