"""A cluster of three brokers that loses two: nothing can be stored, and what runs goes on."""

import time
from typing import Any

import anyio
import pytest

from components.chaos.ask import ask
from components.chaos.history import gap_across
from tests.faults.cluster import ClusterSystem
from tests.faults.system import STEP_S, make_questions

pytestmark = pytest.mark.anyio


async def test_a_minority_of_brokers_carries_what_runs_and_refuses_the_rest(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system: ClusterSystem = await open_system(kind=ClusterSystem)
    (question,) = await make_questions(system.target(), 1, seed=7)
    async with under_load(system, streams=16, may_refuse=True, max_tokens=400) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        system.kill("nats-1", "nats-2")
        await anyio.sleep(1.0)
        refused = await ask(system.target(), question)
        await anyio.sleep(1.0)
        for name in ("nats-1", "nats-2"):
            await system.start_broker(name)
        back_at = time.monotonic()
        status = 0
        with anyio.move_on_after(15.0):
            while status != 200:
                status = (await ask(system.target(), question)).status
        healed_s = time.monotonic() - back_at
    gap_s, refused_s = gap_across(load.answers, at), refused.ended_at - refused.started_at
    measured(
        "13",
        f"gap {1e3 * gap_s:.0f} ms, {refused.status} after {refused_s:.1f} s; "
        f"new requests {healed_s:.1f} s after the others are back",
    )
    assert gap_s < 1.0 + STEP_S + stalls.slack_s
    assert refused.status == 503
    assert refused_s < 4.0 + stalls.slack_s
    assert healed_s < 10.0
