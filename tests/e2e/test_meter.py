"""The usage meter is killed in the middle of its work, twice, and its sums are exact."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.codec import codec, encode
from bus.config import BusConfig
from bus.connection import NatsBus, open_bus
from bus.messages.inference import RequestUsage, UsageBatch
from bus.server import run_server
from bus.subjects import Subjects
from components.meter import TenantUsage

NUM_USAGES = 1200
NUM_HOSTILE = 40
DEADLINE_S = 300.0
TENANTS = ("acme", "zen", "Größe & Co", "d.o.t")


@pytest.mark.anyio
async def test_a_killed_meter_neither_loses_nor_doubles(tmp_path: Path, shell: Any) -> None:
    rng = random.Random(7)
    usages = [
        RequestUsage(
            request_id=f"r-{number}",
            model="m",
            tenant=rng.choice(TENANTS),
            prompt_tokens=rng.randrange(1000),
            output_tokens=rng.randrange(1000),
            cached_tokens=rng.randrange(100),
            finish_reason="stop",
            finished_at=float(number),
        )
        for number in range(NUM_USAGES)
    ]
    async with (
        run_server(str(tmp_path)) as server,
        open_bus(BusConfig(url=server.url), Subjects(), name="test") as bus,
    ):
        await bus.ensure()
        words = ("run", "components.meter:UsageMeter", "--set", f"bus.url={server.url}")
        meter = shell.start(*words)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish, bus, usages, rng)
            for threshold in (NUM_USAGES // 4, NUM_USAGES // 2):
                await wait_until_counted(bus, threshold, shell.output)
                meter.send_signal(signal.SIGKILL)
                meter = shell.start(*words)
        await wait_until_counted(bus, NUM_USAGES, shell.output)
        totals = await read_totals(bus)
    for tenant in TENANTS:
        mine = [usage for usage in usages if usage.tenant == tenant]
        assert totals[tenant].num_requests == len(mine)
        assert totals[tenant].prompt_tokens == sum(usage.prompt_tokens for usage in mine)
        assert totals[tenant].output_tokens == sum(usage.output_tokens for usage in mine)
        assert totals[tenant].cached_tokens == sum(usage.cached_tokens for usage in mine)
    assert set(totals) == set(TENANTS)


async def publish(bus: NatsBus, usages: list[RequestUsage], rng: random.Random) -> None:
    """Publish every usage once, some of them twice under one id, with hostile bytes in between."""
    hostile = set(rng.sample(range(NUM_USAGES), NUM_HOSTILE))
    for number, usage in enumerate(usages):
        subject = bus.subjects.usage("m", f"tenant-{TENANTS.index(usage.tenant)}")
        batch = encode(UsageBatch(tenant=usage.tenant, requests=[usage]))
        await bus.append(subject, batch, msg_id=usage.request_id)
        if rng.random() < 0.1:
            await bus.append(subject, batch, msg_id=usage.request_id)
        if number in hostile:
            await bus.append(subject, rng.randbytes(rng.randrange(200)))


async def read_totals(bus: NatsBus) -> dict[str, TenantUsage]:
    entries = [e for e in await bus.bucket("STATE").entries() if e.key.startswith("usage.") and e.value]
    totals = [codec(TenantUsage).decode_json(entry.value or b"") for entry in entries]
    return {total.tenant: total for total in totals}


async def wait_until_counted(bus: NatsBus, num_requests: int, explain: Callable[[], str]) -> None:
    counted = 0
    with anyio.move_on_after(DEADLINE_S):
        while counted < num_requests:
            await anyio.sleep(0.02)
            counted = sum(total.num_requests for total in (await read_totals(bus)).values())
    assert counted >= num_requests, explain()
