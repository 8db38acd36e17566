"""The per-token path: rows reach their owners in order, merged while the bus is full, given up when it stays so."""

import time
from collections.abc import Awaitable, Callable

import pytest

from bus.codec import codec
from bus.config import MockConfig
from bus.errors import BusUnavailable
from bus.messages.base import unpack_u32
from bus.messages.inference import GenerateJob, StepBatch, Stopping
from bus.messages.kv import BlocksStored, KvBatch
from bus.subjects import Subjects
from components.engines import Ended, EngineRequest, Logprobs, Step, StepStats
from components.engines.mock.engine import MockEngine
from components.worker import outbox
from components.worker.events import EventPublisher
from components.worker.exchange import Exchange
from components.worker.peers import Peers
from components.worker.publish import Publisher
from components.worker.sequences import Sequences
from kv_events.log import MAX_BATCH_EVENTS, KvLog

pytestmark = pytest.mark.anyio

STATS = StepStats(0.0, 0, 0, 0, 0)


class Pipe:
    """The publishing side of a bus, which can be full."""

    def __init__(self) -> None:
        self.subjects = Subjects()
        self.is_full = False
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, subject: str, payload: bytes) -> None:
        if self.is_full:
            raise BusUnavailable("full")
        self.sent.append((subject, payload))

    def take(self) -> list[tuple[str, StepBatch]]:
        taken = [(subject.split(".")[3], codec(StepBatch).decode(payload)) for subject, payload in self.sent]
        self.sent.clear()
        return taken


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
async def sequences(pipe: Pipe) -> Sequences:
    engine = MockEngine(MockConfig(), model="m", vocab_size=2048)
    events = EventPublisher(pipe, "kv", KvLog("w-1", 1))
    return Sequences(engine, Publisher(pipe, "w-1"), events, exchange(pipe, engine), lambda: None, publish_gap_s=0.0)


def exchange(pipe: Pipe, engine: MockEngine) -> Exchange:
    """Return an exchange without peers."""
    return Exchange(
        pipe,
        "w-1",
        engine,
        Peers("w-1", "m", lambda: None),
        roles=("both",),
        can_transfer=False,
        on_handed=lambda key, is_taken: None,
        on_wanted=lambda: None,
    )


def accept(sequences: Sequences, owner: str, ticket: int, deadline_at: float | None = None) -> int:
    stopping = Stopping(max_tokens=9)
    job = GenerateJob(
        request_id="r",
        frontend=owner,
        ticket=ticket,
        model="m",
        prompt=b"\1\0\0\0",
        stopping=stopping,
        deadline_at=deadline_at,
    )
    request = EngineRequest(sequences.next_key(), [1], [], job.sampling, stopping, frozenset())
    sequences.accept(job, request)
    return request.key


def rows_of(batch: StepBatch) -> list[tuple[int, int, int]]:
    columns = unpack_u32(batch.tickets), unpack_u32(batch.offsets), unpack_u32(batch.tokens)
    return list(zip(*columns, strict=True))


async def test_a_step_is_one_message_for_each_owner(sequences: Sequences, pipe: Pipe) -> None:
    keys = [accept(sequences, "f-1", 7), accept(sequences, "f-2", 7), accept(sequences, "f-1", 8)]
    sequences.on_step(Step(keys, [50, 60, 70], [], [], STATS))
    sequences.on_step(Step(keys[:1], [51], [Ended(keys[0], "stop", 2, 0)], [], STATS))
    first, second, third = pipe.take()
    assert (first[0], rows_of(first[1])) == ("f-1", [(7, 0, 50), (8, 0, 70)])
    assert [entry.ticket for entry in first[1].accepted] == [7, 8]
    assert (second[0], rows_of(second[1])) == ("f-2", [(7, 0, 60)])
    assert (third[0], rows_of(third[1]), third[1].seq) == ("f-1", [(7, 1, 51)], 1)
    assert [(entry.ticket, entry.num_tokens) for entry in third[1].finished] == [(7, 2)]
    assert len(sequences.ledger) == 2


async def test_fast_steps_share_a_message_but_the_first_token_does_not_wait(
    pipe: Pipe, eventually: Callable[..., Awaitable[None]]
) -> None:
    engine = MockEngine(MockConfig(), model="m", vocab_size=2048)
    events = EventPublisher(pipe, "kv", KvLog("w-1", 1))
    sequences = Sequences(
        engine, Publisher(pipe, "w-1"), events, exchange(pipe, engine), lambda: None, publish_gap_s=0.03
    )
    key = accept(sequences, "f-1", 7)
    for token in (50, 51, 52):
        sequences.on_step(Step([key], [token], [], [], STATS))
    ((_, first),) = pipe.take()
    assert rows_of(first) == [(7, 0, 50)]
    await eventually(lambda: pipe.sent)
    ((_, second),) = pipe.take()
    assert rows_of(second) == [(7, 1, 51), (7, 2, 52)]


async def test_what_is_due_at_once_is_not_put_off_by_what_comes_meanwhile(
    sequences: Sequences, pipe: Pipe, eventually: Callable[..., Awaitable[None]]
) -> None:
    for delay_s in (0.01, 0.0001):
        sequences.flush_soon(delay_s)
        accept(sequences, "f-1", 7)
    await eventually(lambda: pipe.sent)


async def test_steps_merge_while_the_bus_is_full(sequences: Sequences, pipe: Pipe) -> None:
    key = accept(sequences, "f-1", 7)
    pipe.is_full = True
    for offset in range(5):
        sequences.on_step(Step([key], [50 + offset], [], [], STATS))
    assert not pipe.sent
    pipe.is_full = False
    sequences.on_step(Step([key], [55], [Ended(key, "length", 6, 0)], [], STATS))
    ((_, batch),) = pipe.take()
    assert batch.seq == 0
    assert rows_of(batch) == [(7, offset, 50 + offset) for offset in range(6)]
    assert batch.finished[0].num_tokens == 6


async def test_what_the_bus_does_not_take_for_too_long_is_given_up(
    sequences: Sequences, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_ROWS", 8)
    keys = [accept(sequences, "f-1", ticket) for ticket in (1, 2, 3)]
    pipe.is_full = True
    sequences.on_step(Step(keys, [5, 5, 5], [Ended(keys[0], "length", 1, 0)], [], STATS))
    for _ in range(4):
        sequences.on_step(Step(keys[1:], [5, 5], [], [], STATS))
        if not sequences.ledger.live:
            break
    assert not sequences.ledger.live
    pipe.is_full = False
    assert sequences.flush()
    ((_, batch),) = pipe.take()
    assert rows_of(batch) == []
    assert not batch.finished
    assert [(entry.ticket, entry.code, entry.is_retryable) for entry in batch.failed] == [
        (ticket, "bus_unavailable", True) for ticket in (1, 2, 3)
    ]


async def test_logprobs_follow_their_rows(sequences: Sequences, pipe: Pipe) -> None:
    keys = [accept(sequences, "f-1", 7), accept(sequences, "f-1", 8)]
    sequences.on_step(Step(keys, [50, 60], [], [Logprobs(1, -0.5, [60, 61], [-0.5, -1.5])], STATS))
    ((_, batch),) = pipe.take()
    assert rows_of(batch) == [(7, 0, 50), (8, 0, 60)]
    ((entry),) = batch.logprobs
    assert (entry.ticket, entry.offset, entry.logprob, entry.top_ids) == (8, 0, -0.5, [60, 61])


async def test_only_the_owner_can_cancel(sequences: Sequences) -> None:
    key = accept(sequences, "f-1", 7)
    sequences.cancel("f-2", [7])
    assert key in sequences.ledger.live
    sequences.cancel("f-1", [7, 7, 99])
    assert not sequences.ledger.live
    assert sequences.abandon("f-1") == 0


def test_lost_block_events_leave_a_gap_in_the_numbers(pipe: Pipe) -> None:
    events = EventPublisher(pipe, "kv", KvLog("w-1", 5))
    stored = BlocksStored(0, b"12345678")
    events.publish([stored] * (MAX_BATCH_EVENTS + 1))
    pipe.is_full = True
    events.publish([stored] * 3)
    pipe.is_full = False
    events.publish([stored])
    batches = [codec(KvBatch).decode(payload) for _, payload in pipe.sent]
    assert [(batch.epoch, batch.first_seq, len(batch.events)) for batch in batches] == [
        (5, 0, MAX_BATCH_EVENTS),
        (5, MAX_BATCH_EVENTS, 1),
        (5, MAX_BATCH_EVENTS + 4, 1),
    ]


async def test_a_deadline_ends_what_still_runs_and_only_that(
    sequences: Sequences, pipe: Pipe, eventually: Callable[..., Awaitable[None]]
) -> None:
    soon = time.time() + 0.03
    done, late = accept(sequences, "f-1", 1, soon), accept(sequences, "f-1", 2, soon)
    other = accept(sequences, "f-1", 3, soon + 60)
    sequences.on_step(Step([done, late, other], [5, 5, 5], [Ended(done, "stop", 1, 0)], [], STATS))
    pipe.take()
    await eventually(lambda: pipe.sent)
    ((_, batch),) = pipe.take()
    assert [(each.ticket, each.code, each.is_retryable) for each in batch.failed] == [(2, "deadline_passed", False)]
    assert not batch.finished
    assert list(sequences.ledger.live) == [other]
    assert sequences.ledger.is_known("f-1", 2, 0.0), "a repeated delivery of it does not start again"
    sequences.cancel("f-1", [3])
    assert not sequences.ledger.live


async def test_what_came_too_late_for_the_last_step_is_not_blamed_for_it(pipe: Pipe, sequences: Sequences) -> None:
    for ticket in (1, 2):
        accept(sequences, "f-1", ticket)
    early, late = sequences.ledger.live.values()
    late.accepted_at = early.accepted_at + 1.0
    pipe.take()
    sequences.hand_back("engine_died", "it died", stepped_at=early.accepted_at - 5.0)
    ((_, batch),) = pipe.take()
    assert [(failed.ticket, failed.code) for failed in batch.failed] == [(1, "engine_died"), (2, "draining")]
