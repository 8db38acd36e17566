"""A worker on a broker: every token once and in order, whatever comes in and whoever leaves."""

from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest

from bus.codec import codec, encode
from bus.config import MockConfig
from bus.errors import EngineDied
from bus.messages.base import pack_u32, unpack_u32, unpack_u64
from bus.messages.fleet import DeadLetter, ModelCard, WorkerCard, WorkerLoad
from bus.messages.inference import Cancel, Drain, Resume, StepBatch, Stopping
from bus.messages.kv import BlocksRemoved, BlocksStored, KvBatch
from components.engines import EngineRequest, Step
from components.engines.mock.engine import MockEngine
from components.worker import owners, presence

pytestmark = pytest.mark.anyio

Text = Callable[[list[int], int], list[int]]
SLOW = {"step_base_s": 0.005}


async def test_tokens_come_once_in_order_and_are_the_right_ones(stage: Any, text: Text) -> None:
    worker = await stage.add_worker()
    owner = stage.owner
    prompts = {ticket: [ticket, *range(ticket)] for ticket in range(1, 31)}
    for ticket, prompt in prompts.items():
        latency_class = ("interactive", "standard", "batch")[ticket % 3]
        await owner.send(ticket, prompt, max_tokens=ticket, latency_class=latency_class)
    await owner.wait_ended(*prompts)
    for ticket, prompt in prompts.items():
        assert owner.texts[ticket] == text(prompt, ticket)
        assert (owner.finished[ticket].reason, owner.finished[ticket].num_tokens) == ("length", ticket)
        assert owner.accepted[ticket] == worker.name


async def test_a_moved_request_goes_on_where_it_was(stage: Any, text: Text) -> None:
    await stage.add_worker()
    expected = text([5, 6], 10)
    stage.owner.texts[1] = expected[:4]
    await stage.owner.send(1, [5, 6], max_tokens=10, output=pack_u32(expected[:4]), attempt=1)
    await stage.owner.send(2, [5, 6], max_tokens=4, output=pack_u32(expected[:4]), attempt=1)
    await stage.owner.wait_ended(1, 2)
    assert stage.owner.texts[1] == expected
    assert stage.owner.finished[2].reason == "length", "the earlier attempt was complete"
    assert 2 not in stage.owner.texts


async def test_256_at_once(stage: Any, text: Text) -> None:
    await stage.add_worker()
    async with anyio.create_task_group() as tasks:
        for ticket in range(256):
            tasks.start_soon(stage.owner.send, ticket, [ticket, 7])
    await stage.owner.wait_ended(*range(256))
    assert all(stage.owner.texts[ticket] == text([ticket, 7], 16) for ticket in range(256))
    assert not stage.owner.failed


async def test_what_does_not_fit_waits_in_the_queue(stage: Any, text: Text) -> None:
    worker = await stage.add_worker(slots=3, mock={"step_base_s": 0.001})
    for ticket in range(40):
        await stage.owner.send(ticket, [ticket], max_tokens=3, latency_class=("interactive", "standard")[ticket % 2])
    most = 0

    def look() -> bool:
        nonlocal most
        load = worker.engine.load()
        most = max(most, load.running + load.waiting)
        return len(stage.owner.finished) == 40

    await stage.owner.wait(look)
    assert 1 <= most <= 3
    assert all(stage.owner.texts[ticket] == text([ticket], 3) for ticket in range(40))


async def test_two_workers_share_a_lane(stage: Any, text: Text) -> None:
    names = {(await stage.add_worker(slots=8, mock=SLOW)).name for _ in range(2)}
    for ticket in range(32):
        await stage.owner.send(ticket, [ticket])
    await stage.owner.wait_ended(*range(32))
    assert set(stage.owner.accepted.values()) == names
    assert all(stage.owner.texts[ticket] == text([ticket], 16) for ticket in range(32))


async def test_a_cancel_frees_the_slot(stage: Any) -> None:
    worker = await stage.add_worker(slots=1, mock=SLOW)
    await stage.owner.send(1, [1], max_tokens=2000)
    await stage.owner.wait(lambda: len(stage.owner.texts[1]) >= 3)
    await stage.owner.send(2, [2], max_tokens=1)
    stage.owner.cancel(worker.name, 1, 99)
    await stage.owner.wait_ended(2)
    num_rows = len(stage.owner.texts[1])
    await stage.owner.send(3, [3], max_tokens=20)
    await stage.owner.wait_ended(3)
    assert len(stage.owner.texts[1]) == num_rows < 2000
    assert 1 not in stage.owner.finished


async def test_a_request_that_was_cancelled_before_it_came_never_starts(stage: Any) -> None:
    worker = await stage.add_worker()
    stage.owner.cancel(worker.name, 1)
    await stage.owner.bus.flush()
    await stage.owner.send(1, [1])
    await stage.owner.send(2, [2])
    await stage.owner.wait_ended(2)
    assert list(stage.owner.accepted) == [2]


async def test_a_job_that_comes_twice_runs_once(stage: Any) -> None:
    await stage.add_worker(mock=SLOW)
    for ticket in (1, 1, 2):
        await stage.owner.send(ticket, [ticket])
    await stage.owner.wait_ended(1, 2)
    await stage.owner.send(1, [1])
    await stage.owner.send(3, [3])
    await stage.owner.wait_ended(3)
    assert len(stage.owner.texts[1]) == 16


async def test_owners_are_told_why_a_job_cannot_run(stage: Any) -> None:
    await stage.add_worker()
    send = stage.owner.send
    await send(1, [1] * 4096)
    await send(2, [2], model="other")
    await send(3, [3], deadline_at=1.0)
    await send(4, [2048])
    await send(5, [])
    await send(6, [6], stopping=Stopping(max_tokens=2, stop_token_ids=[2**32 - 1]))
    await stage.owner.wait_ended(*range(1, 7))
    codes = {ticket: failed.code for ticket, failed in stage.owner.failed.items()}
    assert codes == {
        1: "context_length_exceeded",
        2: "model_not_found",
        3: "deadline_passed",
        4: "invalid_request",
        5: "invalid_request",
        6: "invalid_request",
    }
    assert not any(failed.is_retryable for failed in stage.owner.failed.values())
    assert not stage.owner.accepted


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"{}", b"\x81\xa4type\xacgenerate_job", b"\x91" * 5000])
async def test_a_malformed_job_is_buried_and_what_is_behind_it_runs(stage: Any, payload: bytes) -> None:
    await stage.add_worker()
    letters: list[DeadLetter] = []
    stage.owner.bus.subscribe(
        stage.owner.bus.subjects.dead("*"), lambda message: letters.append(codec(DeadLetter).decode(message.payload))
    )
    await stage.owner.bus.flush()
    await stage.owner.send_raw(payload)
    await stage.owner.send(1, [1])
    await stage.owner.wait_ended(1)
    assert [(letter.code, letter.payload) for letter in letters] == [("malformed", payload)]
    assert 1 in stage.owner.finished


async def test_malformed_commands_harm_nobody(stage: Any) -> None:
    worker = await stage.add_worker()
    for payload in (b"", b"\xc1", b"{}", encode({"type": "cancel", "frontend": "f-1", "tickets": b"abc"})):
        stage.owner.bus.publish(stage.owner.bus.subjects.ctl(worker.name), payload)
    await stage.owner.send(1, [1])
    await stage.owner.wait_ended(1)


async def test_a_stopped_worker_finishes_what_it_holds(stage: Any, text: Text) -> None:
    worker = await stage.add_worker(mock=SLOW)
    for ticket in range(8):
        await stage.owner.send(ticket, [ticket])
    await stage.owner.wait(lambda: len(stage.owner.accepted) == 8)
    worker.worker.stop()
    with anyio.fail_after(30):
        await worker.ended.wait()
    await stage.owner.wait_ended(*range(8))
    assert all(stage.owner.texts[ticket] == text([ticket], 16) for ticket in range(8))
    assert worker.failure is None
    assert f"worker.{worker.name}" not in await stage.registered()


async def test_a_stopped_worker_hands_back_what_it_cannot_finish(stage: Any, text: Text) -> None:
    worker = await stage.add_worker(mock=SLOW, grace_s=0.05)
    for ticket in range(8):
        await stage.owner.send(ticket, [ticket], max_tokens=2000)
    await stage.owner.wait(lambda: all(len(stage.owner.texts[ticket]) > 1 for ticket in range(8)))
    worker.worker.stop()
    await stage.owner.wait_ended(*range(8))
    assert {(failed.code, failed.is_retryable) for failed in stage.owner.failed.values()} == {("draining", True)}
    with anyio.fail_after(30):
        await worker.ended.wait()
    await stage.add_worker()
    for ticket in range(8):
        done = stage.owner.texts[ticket]
        stage.owner.texts[ticket + 100] = list(done)
        await stage.owner.send(ticket + 100, [ticket], max_tokens=len(done) + 5, output=pack_u32(done))
    await stage.owner.wait_ended(*range(100, 108))
    for ticket in range(8):
        moved = stage.owner.texts[ticket + 100]
        assert moved == text([ticket], len(moved))


class DyingEngine(MockEngine):
    """Fails in its third step."""

    async def run(self, on_step: Callable[[Step], None], on_note: Any = None) -> None:
        num_steps = 0

        def count(step: Step) -> None:
            nonlocal num_steps
            num_steps += 1
            if num_steps == 3:
                raise EngineDied("out of memory")
            on_step(step)

        await super().run(count)


async def test_owners_hear_of_a_dead_engine_and_the_process_ends(stage: Any) -> None:
    worker = await stage.add_worker(make_engine=lambda mock: DyingEngine(mock, model="tiny", vocab_size=2048))
    await stage.owner.send(1, [1])
    await stage.owner.wait_ended(1)
    assert (stage.owner.failed[1].code, stage.owner.failed[1].is_retryable) == ("engine_died", True)
    with anyio.fail_after(30):
        await worker.ended.wait()
    assert isinstance(worker.failure, EngineDied)
    assert f"worker.{worker.name}" not in await stage.registered()


async def test_work_for_a_frontend_that_is_gone_stops(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "SILENCE_S", 0.2)
    monkeypatch.setattr(owners, "LOOK_EVERY_S", 0.05)
    worker = await stage.add_worker(mock=SLOW)
    await stage.owner.send(1, [1], max_tokens=4000)
    await stage.owner.wait(lambda: 1 in stage.owner.accepted)
    idle = anyio.Event()
    stage.owner.bus.subscribe(
        stage.owner.bus.subjects.load("tiny", worker.name),
        lambda message: idle.set() if codec(WorkerLoad).decode(message.payload).running == 0 else None,
    )
    with anyio.fail_after(30):
        await idle.wait()
    assert len(stage.owner.texts[1]) < 4000


async def test_cards_say_what_is_served_and_the_files_are_there(stage: Any) -> None:
    worker = await stage.add_worker(slots=7)
    registry = stage.owner.bus.bucket("REG")
    card = codec(WorkerCard).decode((await registry.get(f"worker.{worker.name}")).value)
    assert (card.model, card.slots, card.engine, card.roles) == ("tiny", 7, "mock", ["both"])
    model = codec(ModelCard).decode((await registry.get("model.tiny")).value)
    assert (model.vocab_size, model.eos_token_ids) == (2048, [1])
    assert await stage.owner.bus.get_blob(model.files["tokenizer.json"]) == b"{}"


async def test_load_and_block_events_are_told(stage: Any) -> None:
    worker = await stage.add_worker(mock={"num_blocks": 16, "block_size": 4, **SLOW})
    loads: list[WorkerLoad] = []
    batches: list[KvBatch] = []
    subjects = stage.owner.bus.subjects
    stage.owner.bus.subscribe(
        subjects.load("tiny", "*"), lambda message: loads.append(codec(WorkerLoad).decode(message.payload))
    )
    stage.owner.bus.subscribe(
        subjects.kv("tiny", "*"), lambda message: batches.append(codec(KvBatch).decode(message.payload))
    )
    await stage.owner.bus.flush()
    for ticket in range(6):
        await stage.owner.send(ticket, [ticket] * 20)
    await stage.owner.wait_ended(*range(6))
    with anyio.fail_after(30):
        while not (any(load.running for load in loads) and loads[-1].running == 0):
            await stage.owner.bus.flush()
    assert {load.worker for load in loads} == {worker.name}
    assert loads[-1].free_blocks == 16
    decoder = msgspec.msgpack.Decoder(BlocksStored | BlocksRemoved)
    seq = 0
    known: set[int] = set()
    for batch in batches:
        assert batch.first_seq == seq
        seq += len(batch.events)
        for raw in batch.events:
            event = decoder.decode(raw)
            hashes = set(unpack_u64(event.block_hashes))
            if isinstance(event, BlocksStored):
                assert not known & hashes
                known |= hashes
            else:
                assert hashes <= known
                known -= hashes
    assert 0 < len(known) <= 16


async def test_a_worker_outlives_the_broker(nats_stage: Any, text: Text) -> None:
    worker = await nats_stage.add_worker()
    await nats_stage.owner.send(1, [1])
    await nats_stage.owner.wait_ended(1)
    await nats_stage.server.kill()
    await nats_stage.server.start()
    await nats_stage.owner.send(2, [2])
    await nats_stage.owner.wait_ended(2)
    assert f"worker.{worker.name}" in await nats_stage.registered()
    assert nats_stage.owner.texts[2] == text([2], 16)


async def test_batches_that_were_lost_on_the_way_are_sent_again(stage: Any, text: Text, collect: Any) -> None:
    worker = await stage.add_worker()
    await stage.owner.send(1, [1])
    await stage.owner.wait_ended(1)
    again = collect()
    stage.owner.bus.subscribe(stage.owner.bus.subjects.out("f-1", "*"), again)
    stage.owner.command(worker.name, Resume(frontend="f-1", seq=99))
    stage.owner.command(worker.name, Resume(frontend="f-2", seq=0))
    stage.owner.command(worker.name, Resume(frontend="f-1", seq=0))
    messages = await again.until(lambda items: any(b"length" in item.payload for item in items))
    batches = [codec(StepBatch).decode(message.payload) for message in messages]
    assert [batch.seq for batch in batches] == list(range(len(batches)))
    tokens = b"".join(batch.tokens for batch in batches)
    assert unpack_u32(tokens).tolist() == text([1], 16)


async def test_a_drain_on_command_hands_back_what_its_time_does_not_let_finish(stage: Any) -> None:
    worker = await stage.add_worker(mock={"step_base_s": 0.05})
    await stage.owner.send(1, [1], max_tokens=500)
    await stage.owner.wait(lambda: bool(stage.owner.texts[1]))
    stage.owner.command(worker.name, Drain(grace_s=0.0))
    await stage.owner.wait_ended(1)
    assert stage.owner.failed[1].code == "draining"
    assert stage.owner.failed[1].is_retryable
    with anyio.fail_after(30):
        await worker.ended.wait()


async def test_a_cancel_to_all_reaches_a_job_before_any_worker_has_it(stage: Any, text: Text) -> None:
    worker = await stage.add_worker(slots=1, mock={"step_base_s": 0.02})
    await stage.owner.send(1, [1], max_tokens=4000)
    await stage.owner.wait(lambda: bool(stage.owner.texts[1]))
    await stage.owner.send(2, [2])
    stage.owner.command("any", Cancel(frontend="f-1", tickets=pack_u32([2])))
    await stage.owner.send(3, [3])
    await stage.owner.bus.flush()
    stage.owner.cancel(worker.name, 1)
    await stage.owner.wait_ended(3)
    assert 2 not in stage.owner.accepted
    assert not stage.owner.texts[2]
    assert stage.owner.accepted[3] == worker.name


class SickEngine(MockEngine):
    """Is stuck from its first prompt with token 13 on, and says something else from the second canary on."""

    def __init__(self, mock: MockConfig) -> None:
        super().__init__(mock, model="tiny", vocab_size=2048)
        self.is_stuck = False
        self.num_asked = 0

    def submit(self, request: EngineRequest) -> None:
        self.is_stuck |= 13 in request.prompt
        self.num_asked += 1
        super().submit(msgspec.structs.replace(request, prompt=[*request.prompt, min(2, self.num_asked)]))

    async def run(self, on_step: Callable[[Step], None], *more: Any) -> None:
        def unless_stuck(step: Step) -> None:
            if not self.is_stuck:
                on_step(step)

        await super().run(unless_stuck, *more)


async def test_a_stuck_engine_gives_its_requests_back_and_ends(stage: Any) -> None:
    worker = await stage.add_worker(make_engine=SickEngine, stall_s=0.4)
    await stage.owner.send(1, [13], max_tokens=500)
    await stage.owner.wait_ended(1)
    assert stage.owner.failed[1].code == EngineDied.code
    assert stage.owner.failed[1].is_retryable
    await ended_of(worker, "no step for")


async def test_an_idle_engine_that_goes_wrong_is_found_by_its_canary(stage: Any) -> None:
    worker = await stage.add_worker(make_engine=SickEngine, canary_s=0.05, stall_s=30.0)
    await ended_of(worker, "something else than before")
    assert f"worker.{worker.name}" not in await stage.registered()


async def ended_of(worker: Any, reason: str) -> None:
    with anyio.fail_after(30):
        await worker.ended.wait()
    assert isinstance(worker.failure, EngineDied)
    assert reason in str(worker.failure)


async def test_an_engine_that_was_idle_begins_when_the_owner_knows_who_has_the_job(stage: Any) -> None:
    """What kills an engine in its first step killed three: nobody knew who had been the first."""
    await stage.add_worker(mock={"step_base_s": 0.004})
    batches: list[StepBatch] = []
    owner = stage.owner
    owner.bus.subscribe(
        owner.bus.subjects.out(owner.name, "*"),
        lambda message: batches.append(codec(StepBatch).decode(message.payload)),
    )
    await owner.send(1, [5, 6, 7], max_tokens=3)
    await owner.wait_ended(1)
    assert [each.ticket for each in batches[0].accepted] == [1]
    assert not batches[0].tickets
