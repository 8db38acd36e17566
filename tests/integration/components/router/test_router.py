"""The router on the bus: places, refuses, shares, survives."""

import itertools
from collections import Counter
from typing import Any

import anyio
import msgspec
import pytest

from bus.codec import codec, encode
from bus.messages.base import pack_u64
from bus.messages.kv import BlocksStored, KvBatch
from bus.messages.route import RouteBatch
from kv_events.hashing import block_hashes, salt_hash

pytestmark = pytest.mark.anyio
Stage = Any


def is_full(router: Any) -> bool:
    """Say whether the router has heard that its only worker has no room."""
    return router.find("m") is not None and router.find("m").pool.fleet.num_requests() == [2]


async def test_requests_reach_workers_unchanged_and_leave_the_queue(stage: Stage) -> None:
    for name in ("w-1", "w-2"):
        await stage.add_puppet(name)
    await stage.add_router("r-1")
    for ticket in range(20):
        await stage.owner.send(ticket, first=1000 * ticket, latency_class=("interactive", "batch")[ticket % 2])
    await stage.wait(lambda: len(stage.taken) == 20)
    assert {job.ticket for job in stage.taken} == set(range(20))
    assert all(puppet.taken for puppet in stage.puppets)


async def test_a_burst_of_equal_prompts_goes_to_one_worker_and_is_told(stage: Stage) -> None:
    for name in ("w-1", "w-2", "w-3"):
        await stage.add_puppet(name)
    await stage.add_router("r-1")
    told: list[RouteBatch] = []
    stage.owner.bus.subscribe(
        stage.owner.bus.subjects.route("m", "*"), lambda message: told.append(codec(RouteBatch).decode(message.payload))
    )
    for ticket in range(6):
        await stage.owner.send(ticket, tokens=2000)
    await stage.wait(lambda: len(stage.taken) == 6 and sum(len(batch.placed) for batch in told) == 6)
    assert sorted(len(puppet.taken) for puppet in stage.puppets) == [0, 0, 6]
    placed = [placed for batch in told for placed in batch.placed]
    assert [entry.uncached_tokens for entry in placed] == [2000] + [2000 - 1984] * 5
    assert [batch.seq for batch in told] == list(range(len(told)))


async def test_events_of_a_worker_draw_requests(stage: Stage) -> None:
    for name in ("w-1", "w-2", "w-3"):
        await stage.add_puppet(name)
    await stage.add_router("r-1")
    bus = stage.owner.bus
    hashes = block_hashes(range(4000), 16, salt_hash("m"))
    event = msgspec.Raw(encode(BlocksStored(0, pack_u64(hashes))))
    bus.publish(bus.subjects.kv("m", "w-2"), encode(KvBatch("w-2", 1, 0, [event])))
    await bus.flush()
    for ticket in range(5):
        await stage.owner.send(ticket, tokens=4000 + ticket)
        await stage.wait(lambda count=ticket + 1: len(stage.taken) == count)
    assert len(stage.puppets[1].taken) == 5


async def test_several_routers_place_each_request_once_and_know_of_each_other(stage: Stage) -> None:
    for name in ("w-1", "w-2", "w-3", "w-4"):
        await stage.add_puppet(name)
    for name in ("r-1", "r-2", "r-3"):
        await stage.add_router(name)
    for ticket in range(60):
        await stage.owner.send(ticket, tokens=1000, first=10_000 * (ticket % 4))
    await stage.wait(lambda: len(stage.taken) == 60)
    assert Counter(job.ticket for job in stage.taken) == Counter(range(60))
    places = Counter((job.ticket % 4, puppet.name) for puppet in stage.puppets for job in puppet.taken)
    together = sum(max(count for (group, _), count in places.items() if group == number) for number in range(4))
    assert together >= 40, "most of each group went to one worker, whichever router decided"


async def test_a_dead_routers_requests_go_to_another(stage: Stage) -> None:
    puppet = await stage.add_puppet("w-1", slots=1)
    puppet.report_fields = {"running": 1, "waiting": 1}
    router = await stage.add_router("r-1")
    await stage.wait(lambda: is_full(router))
    for ticket in range(5):
        await stage.owner.send(ticket)
    await anyio.sleep(0.3)
    assert puppet.taken == []
    stage.kill("r-1")
    await stage.add_router("r-2")
    puppet.report_fields = {}
    await stage.wait(lambda: len(puppet.taken) == 5)


async def test_a_router_that_stops_gives_back_at_once_what_waits(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.router.desk.ACK_WAIT_S", 60.0)
    puppet = await stage.add_puppet("w-1", slots=1)
    puppet.report_fields = {"running": 1, "waiting": 1}
    router = await stage.add_router("r-1")
    await stage.wait(lambda: is_full(router))
    for ticket in range(5):
        await stage.owner.send(ticket)
    await stage.wait(lambda: len(router.find("m").pool.queue) == 5)
    second = await stage.add_router("r-2")
    await stage.wait(lambda: is_full(second))
    puppet.report_fields = {}
    router.stop()
    await stage.wait(lambda: len(puppet.taken) == 5)


async def test_what_waits_is_held_for_longer_than_the_broker_waits(stage: Stage, undisturbed: Any) -> None:
    puppet = await stage.add_puppet("w-1", slots=1)
    router = await stage.add_router("r-1")
    tickets = itertools.count()

    async def hold() -> None:
        puppet.report_fields = {"running": 1, "waiting": 1}
        await stage.wait(lambda: is_full(router))
        ticket = next(tickets)
        await stage.owner.send(ticket)
        await stage.wait(lambda: len(router.find("m").pool.queue) >= 1)
        await anyio.sleep(1.2)
        num_held = len(router.find("m").pool.queue)
        puppet.report_fields = {}
        await stage.wait(lambda: ticket in [job.ticket for job in puppet.taken])
        assert num_held == 1, "it did not come a second time"

    await undisturbed(hold, 0.1)


async def test_what_a_worker_never_accepted_goes_to_another_when_it_leaves(stage: Stage) -> None:
    first = await stage.add_puppet("w-1")
    await stage.add_router("r-1")
    first.is_accepting = False
    for ticket in range(3):
        await stage.owner.send(ticket)
    await stage.add_puppet("w-2")
    await stage.wait(lambda: len(stage.taken) == 0)
    stage.kill("w-1")
    await stage.wait(lambda: len(stage.puppets[1].taken) == 3)


async def test_what_a_dead_router_sent_to_a_dead_worker_is_told_to_its_owner_at_once(
    stage: Stage, undisturbed: Any
) -> None:
    numbers = itertools.count()

    async def lose_both() -> None:
        number = next(numbers)
        names = [f"{name}-{number}" for name in ("w", "r", "s")]
        try:
            await lose(stage, 3 * number, *names)
        finally:
            for name in names:
                stage.kill(name)

    await undisturbed(lose_both, 0.1)


async def lose(stage: Stage, first_ticket: int, worker: str, leading: str, following: str) -> None:
    tickets = range(first_ticket, first_ticket + 3)
    puppet = await stage.add_puppet(worker)
    leader = await stage.add_router(leading)
    puppet.is_accepting = False
    await stage.wait(lambda: leader.find("m") is not None and leader.find("m").lead.is_leading)
    second = await stage.add_router(following)
    await stage.wait(lambda: second.find("m") is not None and second.find("m").pool.fleet.present != [])
    for ticket in tickets:
        await stage.owner.send(ticket)
    await stage.wait(lambda: second.find("m").pool.fleet.num_requests()[-1] == 3, within_s=3.0)
    await stage.wait(lambda: leader.find("m").num_sending == 0)
    stage.kill(leading)
    stage.kill(worker)
    await stage.wait(lambda: {failed.ticket for failed in stage.owner.failed} >= {*tickets}, within_s=3.0)
    assert all(failed.is_retryable and failed.code == "router_lost" for failed in stage.owner.failed)


async def test_a_request_that_cannot_be_served_in_time_is_refused(stage: Stage) -> None:
    puppet = await stage.add_puppet("w-1", slots=1)
    puppet.report_fields = {"running": 1, "waiting": 1}
    router = await stage.add_router("r-1", max_wait_s=0.5)
    await stage.wait(lambda: is_full(router))
    await stage.owner.send(7)
    await stage.wait(lambda: len(stage.owner.failed) == 1)
    failed = stage.owner.failed[0]
    assert (failed.ticket, failed.code, failed.is_retryable) == (7, "overloaded", False)
    assert failed.retry_after_s >= 1.0


async def test_what_is_no_request_is_buried(stage: Stage) -> None:
    puppet = await stage.add_puppet("w-1")
    await stage.add_router("r-1")
    bus = stage.owner.bus
    dead: list[str] = []
    bus.subscribe(bus.subjects.dead("req"), lambda message: dead.append(message.subject))
    job = {"type": "generate_job", "request_id": "x", "frontend": "a.b", "ticket": 1, "model": "m", "prompt": b""}
    for payload in (
        b"",
        b"\xc1" * 100,
        b"{}",
        msgspec.msgpack.encode({**job, "stopping": {"max_tokens": 1}}),
    ):
        await bus.append(bus.subjects.req("m", "standard", "t"), payload)
    await stage.owner.send(1)
    await stage.wait(lambda: len(dead) == 4 and len(puppet.taken) == 1)


async def test_messages_of_others_may_be_anything(stage: Stage) -> None:
    await stage.add_puppet("w-1")
    await stage.add_router("r-1")
    bus = stage.owner.bus
    for subject in (bus.subjects.load("m", "w-1"), bus.subjects.route("m", "r-9"), bus.subjects.kv("m", "w-1")):
        for payload in (b"", b"\xff" * 50, b"\x90", b"\x80"):
            bus.publish(subject, payload)
    await stage.owner.send(1)
    await stage.wait(lambda: len(stage.taken) == 1)


async def test_the_pick_door_answers_and_reserves(stage: Stage) -> None:
    for name in ("w-1", "w-2"):
        await stage.add_puppet(name)
    router = await stage.add_router("r-1")
    await stage.wait(lambda: router.find("m") is not None)
    bus = stage.owner.bus

    async def ask(**question: Any) -> dict[str, Any]:
        reply = await bus.request(bus.subjects.pick("m"), msgspec.json.encode(question))
        answer: dict[str, Any] = msgspec.json.decode(reply.payload)
        return answer

    tokens = list(range(2000))
    first = await ask(model="m", tokens=tokens, reserve=True, request_id="a")
    second = await ask(model="m", tokens=tokens)
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 1984)
    assert first["worker"] == second["worker"]
    by_hash = await ask(block_hashes=block_hashes(tokens, 16, salt_hash("m")), num_tokens=2000)
    assert by_hash["cached_tokens"] == 1984
    for question in ({}, {"tokens": [-1]}, {"tokens": [1], "what": 1}, {"tokens": [1], "reserve": True}):
        assert "error" in await ask(**question)
    reply = await bus.request(bus.subjects.pick("other"), b'{"tokens":[1]}')
    assert msgspec.json.decode(reply.payload)["error"]["code"] == "model_not_found"
