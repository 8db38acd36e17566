"""A component on a real server: each message finds its fate, and a meter counts exactly once."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bus.codec import codec, encode
from bus.component import Context, describe
from bus.config import BusConfig
from bus.connection import NatsBus, open_bus
from bus.errors import Fatal, Permanent, Retryable
from bus.messages.fleet import DeadLetter, WorkerLoad
from bus.messages.inference import RequestUsage, UsageBatch
from bus.server import run_server
from bus.subjects import Subjects
from components.meter import TenantUsage, UsageMeter
from components.runner import ComponentRunner, readable_streams

pytestmark = pytest.mark.anyio

DEADLINE_S = 20.0


def usage(number: int, tenant: str = "acme") -> RequestUsage:
    return RequestUsage(
        request_id=f"r-{number}",
        model="m",
        tenant=tenant,
        prompt_tokens=10,
        output_tokens=number,
        finish_reason="stop",
        finished_at=1.0,
    )


def batch(number: int, tenant: str = "acme") -> UsageBatch:
    return UsageBatch(tenant=tenant, requests=[usage(number, tenant)])


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[NatsBus]:
    async with (
        run_server(str(tmp_path)) as server,
        open_bus(BusConfig(url=server.url), Subjects(), name="test") as bus,
    ):
        await bus.ensure()
        yield bus


@asynccontextmanager
async def running(factory: type, bus: NatsBus) -> AsyncIterator[ComponentRunner]:
    runner = ComponentRunner(describe(factory), {}, bus, readable_streams(bus.subjects))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run)
        yield runner
        runner.stop()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a condition, not an event
            await anyio.sleep(0.01)


@asynccontextmanager
async def dead_letters(bus: NatsBus) -> AsyncIterator[list[DeadLetter]]:
    letters: list[DeadLetter] = []
    subscription = bus.subscribe(
        bus.subjects.dead("*"), lambda incoming: letters.append(codec(DeadLetter).decode(incoming.payload))
    )
    await bus.flush()
    yield letters
    subscription.unsubscribe()


async def test_good_messages_of_a_stream_are_handled_once_and_in_order(bus: NatsBus) -> None:
    seen: list[tuple[int, int]] = []

    class Reader:
        subject = "usage.v1.>"
        durable = "reader"

        async def handle(self, message: RequestUsage, context: Context) -> None:
            seen.append((message.output_tokens, context.stream_seq))

    for number in range(50):
        await bus.append(bus.subjects.usage("m", "acme"), encode(usage(number)))
    async with running(Reader, bus):
        await until(lambda: len(seen) >= 50)
    assert seen == [(number, number + 1) for number in range(50)]


async def test_what_cannot_be_handled_is_buried_and_the_rest_goes_on(bus: NatsBus) -> None:
    seen: list[int] = []

    class Picky:
        subject = "usage.v1.>"
        durable = "picky"
        max_deliver = 2

        async def handle(self, message: RequestUsage, context: Context) -> None:
            if message.output_tokens == 1:
                raise Permanent("never this one")
            if message.output_tokens == 2:
                raise ZeroDivisionError("a bug")
            seen.append(message.output_tokens)

    subject = bus.subjects.usage("m", "acme")
    async with dead_letters(bus) as letters, running(Picky, bus):
        for payload in (b"\xc1", b"", b"{", b"\x91" * 100_000, encode({"type": "request_usage", "prompt_tokens": -1})):
            await bus.append(subject, payload)
        for number in range(4):
            await bus.append(subject, encode(usage(number)))
        await until(lambda: len(letters) >= 7 and len(seen) >= 2)
    assert seen == [0, 3]
    assert [letter.code for letter in letters] == ["malformed"] * 5 + ["permanent", "failed"]
    assert all(len(letter.payload) <= 64 * 1024 for letter in letters)
    assert letters[5].subject == subject
    assert "never this one" in letters[5].reason


async def test_a_retryable_failure_is_retried_for_longer_than_a_bug_would_be(bus: NatsBus) -> None:
    deliveries: list[int] = []

    class Patient:
        subject = "usage.v1.>"
        durable = "patient"
        max_deliver = 2

        async def handle(self, message: RequestUsage, context: Context) -> None:
            deliveries.append(context.num_delivered)
            if context.num_delivered < 8:
                raise Retryable("not yet", delay_s=0.001)

    async with running(Patient, bus):
        await bus.append(bus.subjects.usage("m", "acme"), encode(usage(1)))
        await until(lambda: 8 in deliveries)
    assert deliveries == list(range(1, 9))


async def test_messages_in_flight_together_are_bounded(bus: NatsBus) -> None:
    active: set[int] = set()
    most: list[int] = []

    class Wide:
        subject = "usage.v1.>"
        durable = "wide"
        in_flight = 4

        async def handle(self, message: RequestUsage, context: Context) -> None:
            active.add(message.output_tokens)
            most.append(len(active))
            await anyio.sleep(0.005)
            active.discard(message.output_tokens)

    for number in range(40):
        await bus.append(bus.subjects.usage("m", "acme"), encode(usage(number)))
    async with running(Wide, bus):
        await until(lambda: len(most) >= 40)
    assert max(most) == 4


async def test_a_core_subject_survives_hostile_bytes_and_a_failing_handler(bus: NatsBus) -> None:
    seen: list[str] = []

    class Loads:
        subject = "load.v1.>"

        async def handle(self, message: WorkerLoad, context: Context) -> None:
            if message.worker == "bad":
                raise RuntimeError("a bug")
            seen.append(message.worker)

    def load(worker: str) -> bytes:
        return encode(
            WorkerLoad(
                worker=worker,
                model="m",
                running=0,
                waiting=0,
                free_blocks=0,
                num_blocks=0,
                prefill_tokens=0,
                step_s=0.0,
                at=0.0,
            )
        )

    async with running(Loads, bus):
        await bus.flush()
        for payload in (b"", b"\xc1", load("bad"), b"[[[[", load("good")):
            bus.publish(bus.subjects.load("m", "w"), payload)
        await until(lambda: bool(seen))
    assert seen == ["good"]


async def test_a_fatal_error_ends_the_component(bus: NatsBus) -> None:
    class Broken:
        subject = "usage.v1.>"
        durable = "broken"

        async def handle(self, message: RequestUsage, context: Context) -> None:
            raise Fatal("cannot go on")

    await bus.append(bus.subjects.usage("m", "acme"), encode(usage(1)))
    with anyio.fail_after(DEADLINE_S), pytest.raises(Fatal, match="cannot go on"):
        await ComponentRunner(describe(Broken), {}, bus, readable_streams(bus.subjects)).run()


async def total(bus: NatsBus, tenant: str) -> TenantUsage | None:
    entry = await bus.bucket("STATE").get(f"usage.{tenant}")
    return codec(TenantUsage).decode_json(entry.value) if entry and entry.value else None


async def wait_total(bus: NatsBus, tenant: str, num_requests: int) -> TenantUsage:
    with anyio.fail_after(DEADLINE_S):
        while True:
            found = await total(bus, tenant)
            if found is not None and found.num_requests >= num_requests:
                return found
            await anyio.sleep(0.02)


async def test_the_meter_counts_a_message_once_that_is_published_twice(bus: NatsBus) -> None:
    async with running(UsageMeter, bus):
        for number in (1, 2, 2, 3, 1):
            await bus.append(bus.subjects.usage("m", "acme"), encode(batch(number)), msg_id=f"r-{number}")
        await bus.append(bus.subjects.usage("m", "zen"), encode(batch(5, "zen")), msg_id="r-5")
        await wait_total(bus, "zen", 1)
    acme = await total(bus, "acme")
    assert acme == TenantUsage(tenant="acme", num_requests=3, prompt_tokens=30, output_tokens=6, last_seq=3)


async def test_a_usage_below_zero_is_buried_and_not_counted(bus: NatsBus) -> None:
    subject = bus.subjects.usage("m", "acme")
    async with dead_letters(bus) as letters, running(UsageMeter, bus):
        below = msgspec.to_builtins(usage(1)) | {"output_tokens": -1_000_000}
        await bus.append(subject, encode(msgspec.to_builtins(batch(1)) | {"requests": [below]}))
        await bus.append(subject, encode(batch(2)))
        assert (await wait_total(bus, "acme", 1)).output_tokens == 2
        await until(lambda: len(letters) == 1)
    assert letters[0].code == "malformed"


async def test_the_meter_does_not_count_again_what_is_delivered_again(bus: NatsBus) -> None:
    subject = bus.subjects.usage("m", "acme")
    for number in (1, 2, 3):
        await bus.append(subject, encode(batch(number)))
    async with running(UsageMeter, bus):
        await wait_total(bus, "acme", 3)

    class Again(UsageMeter):
        durable = "usage-meter-again"

    async with running(Again, bus):
        await bus.append(subject, encode(batch(4)))
        assert (await wait_total(bus, "acme", 4)).output_tokens == 1 + 2 + 3 + 4


async def test_anybody_reads_the_meter_as_json(bus: NatsBus) -> None:
    await bus.append(bus.subjects.usage("m", "acme"), msgspec.json.encode(batch(7)))
    async with running(UsageMeter, bus):
        await wait_total(bus, "acme", 1)
    entry = await bus.bucket("STATE").get("usage.acme")
    assert entry is not None
    assert entry.value is not None
    assert msgspec.json.decode(entry.value)["output_tokens"] == 7


async def test_a_handler_that_takes_long_is_not_interrupted_by_a_second_delivery(
    bus: NatsBus, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.runner.ACK_WAIT_S", 0.6)
    deliveries: list[int] = []

    class Slow:
        subject = "usage.v1.>"
        durable = "slow"

        async def handle(self, message: RequestUsage, context: Context) -> None:
            deliveries.append(context.num_delivered)
            await anyio.sleep(1.5)

    async def handle() -> None:
        deliveries.clear()
        await bus.append(bus.subjects.usage("m", "acme"), encode(usage(1)))
        async with running(Slow, bus) as runner:
            await until(lambda: bool(deliveries))
            runner.stop()
        assert deliveries == [1]

    await undisturbed(handle, 0.1)
