"""The whole system in virtual time: it repeats exactly, and its routers do what they promise under load."""

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import anyio
import pytest

from bus.config import RouterConfig
from bus.messages.base import pack_u32
from bus.messages.inference import LatencyClass
from bus.testing import MemoryBroker
from components.replay.book import Arrival, Outcome
from components.replay.clock import run_virtual
from components.replay.owner import Owner
from components.replay.report import Goal, Report, compute_latency
from components.replay.run import report_owners
from components.replay.trace import PromptWriter, arrivals_of, read_trace
from components.replay.world import SETTLE_S, VOCAB_SIZE, Connect, World, drive, open_world, replay, run_router

TRACE = Path(__file__).parent / "trace.jsonl"
"""The first requests of Mooncake's conversation trace (kvcache-ai/Mooncake, Apache-2.0)."""


def run(world: World, arrivals: Iterable[Arrival]) -> tuple[list[Outcome], Report]:
    owners = run_virtual(lambda: replay(world, arrivals))
    outcomes = [outcome for owner in owners for outcome in owner.book.outcomes]
    return outcomes, report_owners(owners, world.num_workers, Goal())


def run_trace(world: World, num_requests: int) -> tuple[list[Outcome], Report]:
    requests = read_trace(TRACE.read_bytes().splitlines(), limit=num_requests)
    return run(world, arrivals_of(requests, PromptWriter(VOCAB_SIZE)))


def prompt(rng: Random, num_tokens: int) -> bytes:
    return pack_u32([rng.randrange(400, 60_000) for _ in range(num_tokens)])


def test_the_same_run_gives_the_same_times() -> None:
    world = World(num_routers=2, num_frontends=2)
    first, second = run_trace(world, 40), run_trace(world, 40)
    assert first == second


def test_every_request_finishes_with_all_its_tokens() -> None:
    outcomes, report = run_trace(World(num_routers=1), 60)
    assert report.num_finished == len(outcomes) == 60
    requests = read_trace(TRACE.read_bytes().splitlines(), limit=60)
    assert report.output_tokens == sum(request.output_length for request in requests)


def conversations(num: int, turns: int, *, seed: int = 1) -> list[Arrival]:
    """Return chats whose prompts grow: each turn repeats the last prompt and adds 1,000 to 3,000 tokens."""
    rng = Random(seed)
    arrivals = []
    for _ in range(num):
        at_s, text = rng.uniform(0, 20), b""
        for _ in range(turns):
            text += prompt(rng, rng.randrange(1000, 3000))
            arrivals.append(Arrival(at_s=at_s, prompt=text, num_output=4))
            at_s += rng.uniform(3, 9)
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def test_reuse_and_latency_do_not_depend_on_the_number_of_routers_and_frontends() -> None:
    load = conversations(60, 5)
    _, one = run(World(num_routers=1, num_frontends=1), load)
    assert one.reuse > 0.55
    for count in (4, 16):
        _, many = run(World(num_routers=count, num_frontends=count), load)
        assert many.num_finished == len(load)
        assert many.reuse == pytest.approx(one.reuse, rel=0.02)
        assert many.ttft.p99_s == pytest.approx(one.ttft.p99_s, rel=0.05)


def test_reuse_outlives_leaders_that_die_every_few_seconds() -> None:
    load = conversations(60, 5)
    _, calm = run(World(num_routers=1), load)
    world, num_routers, life_s = World(num_routers=0, num_frontends=2), 3, 9.0
    owners: list[Owner] = []

    async def keep_router(connect: Connect, place: int) -> None:
        for number in itertools.count():
            # In turn: one of them dies every three seconds, and is replaced by one that knows nothing.
            with anyio.move_on_after(life_s * (1 if number else (place + 1) / num_routers)):
                await run_router(world, connect, f"r-{number}-{place}")

    async def work() -> None:
        connect = MemoryBroker().connect
        async with anyio.create_task_group() as routers, open_world(world, connect) as opened:
            for place in range(num_routers):
                routers.start_soon(keep_router, connect, place)
            await anyio.sleep(SETTLE_S)
            await drive(opened, load)
            owners.extend(opened)
            routers.cancel_scope.cancel()

    run_virtual(work)
    report = report_owners(owners, world.num_workers, Goal())
    assert report.num_finished == len(load)
    assert report.reuse == pytest.approx(calm.reuse, rel=0.03)


def test_bursts_spread_as_well_with_many_routers_as_with_one() -> None:
    bursts = [
        Arrival(at_s=3.0 * number, prompt=prompt(Random(10 * number + place), 4000), num_output=2)
        for number in range(8)
        for place in range(10)
    ]
    _, one = run(World(num_routers=1, num_frontends=1), bursts)
    _, many = run(World(num_routers=8, num_frontends=8), bursts)
    assert many.ttft.mean_s == pytest.approx(one.ttft.mean_s, rel=0.05)
    assert many.ttft.p99_s == pytest.approx(one.ttft.p99_s, rel=0.05)


def test_prefixes_are_found_again_which_round_robin_loses() -> None:
    load = conversations(60, 5)
    _, kv = run(World(num_routers=1), load)
    _, blind = run(World(num_routers=1, router=RouterConfig(mode="round_robin")), load)
    assert kv.reuse > 2 * blind.reuse
    assert kv.ttft.mean_s < blind.ttft.mean_s


def flood(
    num: int,
    *,
    tenant: str,
    seed: int,
    latency_class: LatencyClass = "standard",
    over_s: float = 0.0,
    num_tokens: int = 3000,
) -> list[Arrival]:
    rng = Random(seed)
    return [
        Arrival(
            at_s=over_s * number / num,
            prompt=prompt(rng, num_tokens),
            num_output=2,
            tenant=tenant,
            latency_class=latency_class,
        )
        for number in range(num)
    ]


def test_a_burst_of_equal_prompts_goes_to_one_place_before_any_event_tells_of_them() -> None:
    others = flood(40, tenant="others", seed=7, over_s=10.0)  # the router knows by then how fast workers are
    same = prompt(Random(2), 4000)
    burst = [Arrival(at_s=20.0, prompt=same, num_output=4, tenant="burst") for _ in range(8)]
    outcomes, _ = run(World(num_routers=1), others + burst)
    outcomes = [outcome for outcome in outcomes if outcome.tenant == "burst"]
    assert len({outcome.worker for outcome in outcomes}) == 1
    assert Counter(outcome.cached_tokens for outcome in outcomes) == {0: 1, 3968: 7}


@pytest.mark.parametrize("num_routers", [1, 3])
def test_tenants_get_their_weights_under_saturation(num_routers: int) -> None:
    router = RouterConfig(tenant_weights={"gold": 4.0, "bronze": 1.0})
    pairs = zip(flood(240, tenant="gold", seed=3), flood(240, tenant="bronze", seed=4), strict=True)
    world = World(num_workers=2, num_routers=num_routers, num_frontends=2, router=router)
    outcomes, report = run(world, itertools.chain.from_iterable(pairs))
    assert report.num_finished == 480
    # While both wait: the first half of what was served. What started before there was a queue counts for neither.
    served = Counter(outcome.tenant for outcome in sorted(outcomes, key=lambda one: one.ttft_s)[10:210])
    assert served["gold"] / served["bronze"] == pytest.approx(4.0, rel=0.15)


def test_a_flood_of_batch_requests_hardly_slows_interactive_ones() -> None:
    calm = flood(200, tenant="people", seed=5, latency_class="interactive", over_s=40.0)
    batch = flood(300, tenant="jobs", seed=6, latency_class="batch", over_s=0.5)
    world = World(num_workers=4, num_routers=1)
    _, alone = run(world, calm)
    outcomes, report = run(world, sorted(calm + batch, key=lambda arrival: arrival.at_s))
    assert report.num_failed == 0
    beside = compute_latency(one.ttft_s for one in outcomes if one.latency_class == "interactive")
    assert beside.p99_s <= 1.05 * alone.ttft.p99_s
