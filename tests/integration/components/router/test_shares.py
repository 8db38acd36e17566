"""Who gets how much of saturated workers: real routers, workers and mock engines, in virtual time."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from bus.codec import codec, encode
from bus.config import RouterConfig
from bus.messages.base import pack_u32, unpack_u32
from bus.messages.fleet import FrontendCard
from bus.messages.inference import GenerateJob, LatencyClass, StepBatch, Stopping
from bus.protocol import Bus, Incoming
from bus.registry import keep_card
from bus.subjects import slug
from bus.testing import MemoryBroker
from components.replay.clock import run_virtual
from components.replay.world import MODEL, World, open_world

_batches = codec(StepBatch)


class Client:
    """Sends prompts that nobody else has, and notes what becomes of them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._rng = random.Random(5)
        self._tenants: dict[int, str] = {}
        self.sent_at: dict[int, float] = {}
        self.first_at: dict[int, float] = {}
        self.accepted: Counter[str] = Counter()
        self.failed: list[str] = []
        bus.subscribe(bus.subjects.out("f-x", "*"), self._on_batch)

    async def send(self, tenant: str, latency_class: LatencyClass, *, tokens: int, max_tokens: int) -> None:
        ticket = len(self._tenants)
        self._tenants[ticket] = tenant
        self.sent_at[ticket] = anyio.current_time()
        job = GenerateJob(
            request_id=f"q-{ticket}",
            frontend="f-x",
            ticket=ticket,
            model=MODEL,
            prompt=pack_u32([self._rng.randrange(60_000)] * tokens),
            tenant=tenant,
            latency_class=latency_class,
            stopping=Stopping(max_tokens=max_tokens, ignore_eos=True),
        )
        await self._bus.append(self._bus.subjects.req(slug(MODEL), latency_class, tenant), encode(job))

    def ttft(self, tenant: str) -> list[float]:
        """Return the times to the first token, in order; all requests of the tenant must have had it."""
        tickets = [ticket for ticket, name in self._tenants.items() if name == tenant]
        return sorted(self.first_at[ticket] - self.sent_at[ticket] for ticket in tickets)

    def _on_batch(self, incoming: Incoming) -> None:
        batch = _batches.decode(incoming.payload)
        self.accepted.update(self._tenants[entry.ticket] for entry in batch.accepted)
        self.failed += [entry.code for entry in batch.failed]
        for ticket in unpack_u32(batch.tickets):
            self.first_at.setdefault(ticket, anyio.current_time())


@asynccontextmanager
async def open_client(world: World) -> AsyncIterator[Client]:
    broker = MemoryBroker()
    card = FrontendCard(frontend="f-x", url="", host="h", pid=1, version="0", started_at=0.0)
    async with open_world(world, broker.connect), broker.connect("f-x") as bus, keep_card(bus, "frontend.f-x", card):
        yield Client(bus)


@pytest.mark.parametrize("num_routers", [1, 3])
def test_weights_decide_under_saturation_however_many_routers_there_are(num_routers: int) -> None:
    async def run() -> Client:
        config = RouterConfig(tenant_weights={"gold": 4.0}, max_wait_s=1000.0)
        async with open_client(World(num_workers=2, num_routers=num_routers, router=config)) as client:
            for _ in range(600):
                await client.send("gold", "standard", tokens=2000, max_tokens=4)
                await client.send("tin", "standard", tokens=2000, max_tokens=4)
            await anyio.sleep(10)
            return client

    client = run_virtual(run)
    assert client.failed == []
    assert client.accepted.total() > 300
    assert 3.6 <= client.accepted["gold"] / client.accepted["tin"] <= 4.4


def test_a_batch_flood_does_not_slow_others_down() -> None:
    async def run(num_batch: int) -> Client:
        async with open_client(World(num_workers=8, num_routers=1, router=RouterConfig(max_wait_s=1000.0))) as client:
            rng = random.Random(3)
            for number in range(300):
                await anyio.sleep(rng.expovariate(10.0))
                await client.send("chat", "interactive", tokens=rng.choice([500, 2000, 6000]), max_tokens=50)
                if number == 10:
                    for _ in range(num_batch):
                        await client.send("bulk", "batch", tokens=8000, max_tokens=100)
            await anyio.sleep(5)
            return client

    alone, flooded = run_virtual(lambda: run(0)), run_virtual(lambda: run(600))
    assert flooded.accepted["bulk"] > 300, "what is left over is not wasted"
    p99 = [client.ttft("chat")[297] for client in (alone, flooded)]
    assert p99[1] < 1.05 * p99[0]
