"""A cluster of three brokers that loses two, or is parted: what runs goes on, and nothing is stored by a minority."""

import time
from functools import partial
from typing import Any

import anyio
import pytest

from components.chaos.ask import ask
from components.chaos.history import Answer, gap_across
from tests.faults.cluster import ClusterSystem, open_ways
from tests.faults.system import STEP_S, make_questions, until

pytestmark = pytest.mark.anyio
PARTED_S = 8.0


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


async def test_a_cluster_whose_leader_reaches_no_other_broker_elects_another(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    """Workers and frontends are on either side: who has nobody on its own refuses, or waits until the two are one."""
    async with open_ways() as ways:
        system: ClusterSystem = await open_system(kind=partial(ClusterSystem, ways=ways), frontends=2)
        questions = await make_questions(system.target(), 2, seed=7)
        tried: list[Answer] = []

        async def try_one(number: int) -> None:
            tried.append(await ask(system.target(f"frontend-{number}"), questions[number]))

        async def wait_served(number: int) -> None:
            with anyio.move_on_after(15.0):
                while (await ask(system.target(f"frontend-{number}"), questions[number])).status != 200:  # noqa: ASYNC110
                    await anyio.sleep(0.1)

        async with (
            under_load(system, streams=16, may_refuse=True, max_tokens=100) as load,
            anyio.create_task_group() as tasks,
        ):
            await anyio.sleep(1.0)
            victim = system.leader("BUSWAY_WORK")
            at = time.monotonic()
            ways.isolate(victim)
            await anyio.sleep(1.0)
            for number in range(len(questions)):
                tasks.start_soon(try_one, number)
            await until(lambda: system.leader("BUSWAY_WORK", but=victim) not in ("", victim), 15.0)
            led_s = time.monotonic() - at
            await anyio.sleep(max(0.0, PARTED_S - led_s))
            ways.heal()
            healed_at = time.monotonic()
            async with anyio.create_task_group() as served:
                for number in range(len(questions)):
                    served.start_soon(wait_served, number)
            healed_s = time.monotonic() - healed_at
    told = ", ".join(f"{each.status} after {each.ended_at - each.started_at:.1f} s" for each in tried)
    gap_s = gap_across(load.answers, at)
    measured(
        "13c",
        f"new requests: {told}; another leader after {led_s:.1f} s; all serve {healed_s:.1f} s after its end, "
        f"gap {gap_s:.1f} s",
    )
    refused = [each for each in tried if each.status != 200]
    assert all(each.status == 503 and each.ended_at - each.started_at < 4.0 + stalls.slack_s for each in refused)
    assert all(not each.error and each.text == each.question.expected for each in tried if each.status == 200)
    assert led_s < 10.0 + stalls.slack_s
    assert healed_s < 10.0 + stalls.slack_s
    assert gap_s < healed_at - at + 10.0 + stalls.slack_s
