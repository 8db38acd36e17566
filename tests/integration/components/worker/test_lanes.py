"""What a router relies on: a lane for each worker, reports that say enough, block events that can be caught up."""

import pytest

from bus.codec import codec, encode
from bus.messages.base import pack_u32
from bus.messages.fleet import WorkerLoad
from bus.messages.inference import GenerateJob, Stopping
from bus.messages.kv import KvBatch, KvQuery
from bus.typed import subscribe_typed
from kv_events.hashing import block_hashes, salt_hash

pytestmark = pytest.mark.anyio

PROMPT = list(range(2, 202))


def job(owner, ticket, **fields):
    return GenerateJob(
        request_id=f"r-{ticket}",
        frontend=owner.name,
        ticket=ticket,
        model="tiny",
        prompt=pack_u32(PROMPT),
        stopping=Stopping(max_tokens=4),
        **fields,
    )


async def test_a_worker_takes_jobs_from_its_own_lane(stage):
    workers = [await stage.add_worker() for _ in range(2)]
    owner = stage.owner
    for ticket, (worker, latency_class) in enumerate([(workers[1], "interactive"), (workers[0], "batch")] * 3):
        subject = owner.bus.subjects.work("tiny", "both", worker.name, latency_class)
        await owner.bus.append(subject, encode(job(owner, ticket, latency_class=latency_class)))
    await owner.wait_ended(*range(6))
    assert owner.accepted == {ticket: workers[(ticket + 1) % 2].name for ticket in range(6)}


async def test_free_slots_go_to_interactive_before_standard_before_batch(stage):
    owner, classes = stage.owner, ("batch", "standard", "interactive")
    for ticket in range(18):
        await owner.send(ticket, PROMPT, max_tokens=4, latency_class=classes[ticket // 6])
    await stage.add_worker(slots=1, mock={"step_base_s": 0.005})
    await owner.wait_ended(*range(18))
    places = {ticket: place for place, ticket in enumerate(owner.accepted)}
    batch, standard, interactive = (sum(places[6 * row + each] for each in range(6)) / 6 for row in range(3))
    assert interactive < standard < batch, places
    assert not owner.failed


async def test_reports_tell_steps_and_the_digest_of_the_blocks(stage, collect):
    loads = collect()
    bus = stage.owner.bus
    subscribe_typed(bus, bus.subjects.load("tiny", "*"), WorkerLoad, lambda load, _: loads(load))
    worker = await stage.add_worker(mock={"step_base_s": 0.002})
    await stage.owner.send(1, PROMPT, max_tokens=4)
    await stage.owner.wait_ended(1)
    expected = block_hashes(PROMPT, 64, salt_hash("tiny"))
    count, xor = len(expected), 0
    for block in expected:
        xor ^= block
    await loads.until(lambda items: items and (items[-1].kv_count, items[-1].kv_xor) == (count, xor))
    await loads.until(lambda items: sum(len(load.steps) for load in items) >= 4)
    assert {load.worker for load in loads.items} == {worker.name}
    steps = [step for load in loads.items for step in load.steps]
    assert [step.prefill_tokens for step in steps] == [len(PROMPT), 0, 0, 0]
    assert [step.decode_requests for step in steps] == [0, 1, 1, 1]
    assert loads.items[-1].kv_seq > 0


async def test_a_reader_gets_what_it_missed_and_a_new_one_a_snapshot(stage, collect):
    bus = stage.owner.bus
    told, answers = collect(), collect()
    subscribe_typed(bus, bus.subjects.kv("tiny", "*"), KvBatch, lambda batch, _: told(batch))
    subscribe_typed(bus, "_INBOX.test", KvBatch, lambda batch, _: answers(batch))
    worker = await stage.add_worker()
    await stage.owner.send(1, PROMPT)
    first = (await told.wait(1))[0]
    query = bus.subjects.kvq(worker.name)
    bus.publish(query, b"\xc1", reply="_INBOX.test")
    bus.publish(query, encode(KvQuery(epoch=first.epoch, since=0)), reply="_INBOX.test")
    await answers.wait(1)
    bus.publish(query, encode(KvQuery()), reply="_INBOX.test")
    await answers.until(lambda items: items[-1].num_parts == 1)
    assert answers.items[0] == first
    assert codec(KvBatch).decode(encode(answers.items[-1])).first_seq > 0
