"""Appending, standing pulls and the fate of deliveries: the same on a server and in memory."""

import anyio
import msgspec
import pytest

from bus.errors import BadConfig, BusUnavailable, Malformed, NoResponder, QueueFull, StreamMismatch
from bus.protocol import ConsumerSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
def lane(namespace):
    return f"{namespace}.work.v1.m.both.any.standard"


@pytest.fixture
def spec(lane):
    return ConsumerSpec(stream="WORK", name="any-m", filter_subject=lane, ack_wait_s=30.0, max_deliver=3)


@pytest.fixture
def impatient(spec):
    """Brings again what is not answered soon; a test that stalls for that long gets more than it asked for."""
    return msgspec.structs.replace(spec, ack_wait_s=0.6)


def acked(got):
    def handle(delivery):
        delivery.ack()
        got(delivery)

    return handle


async def fill(bus, subject, count):
    for number in range(count):
        await bus.append(subject, b"%d" % number)


def numbers(deliveries):
    return [int(delivery.payload) for delivery in deliveries]


async def test_append_counts_and_knows_repeated_ids(bus, lane):
    first = await bus.append(lane, b"a", msg_id="x")
    second = await bus.append(lane, b"b", msg_id="y")
    again = await bus.append(lane, b"a", msg_id="x")
    assert (second.stream_seq, again.stream_seq) == (first.stream_seq + 1, first.stream_seq)
    assert [ack.is_duplicate for ack in (first, second, again)] == [False, False, True]


async def test_append_without_a_stream_fails_at_once(bus, namespace):
    with pytest.raises(NoResponder):
        await bus.append(f"{namespace}.load.v1.m.w", b"", timeout_s=30)


async def test_an_append_that_nobody_waits_for_is_told_once_and_later(bus, lane, collect):
    told = collect()
    for msg_id in ("x", "y", "x"):
        bus.append_soon(lane, b"a", told, msg_id=msg_id)
    assert told.items == []
    first, second, again = await told.wait(3)
    assert (second.stream_seq, again.stream_seq) == (first.stream_seq + 1, first.stream_seq)
    assert [ack.is_duplicate for ack in (first, second, again)] == [False, False, True]
    await bus.flush()
    assert len(told.items) == 3


async def test_an_append_that_nobody_waits_for_is_told_what_went_wrong(bus, lane, namespace, collect):
    told = collect()
    bus.append_soon(f"{namespace}.load.v1.m.w", b"", told, timeout_s=30)
    (error,) = await told.wait(1)
    assert isinstance(error, NoResponder)
    for _ in range(8192):
        bus.publish(lane, b"")
    bus.append_soon(lane, b"", told)
    assert isinstance((await told.wait(2))[-1], QueueFull)
    with pytest.raises(Malformed):
        bus.append_soon(f"{lane}.*", b"", told)


async def test_a_full_lane_refuses_and_other_lanes_do_not_notice(bus, lane, namespace):
    for _ in range(8192):
        bus.publish(lane, b"")
    await bus.flush()
    bus.publish(lane, b"nobody hears that this one is dropped")
    with pytest.raises(QueueFull):
        await bus.append(lane, b"")
    await bus.append(f"{namespace}.work.v1.other.both.any.standard", b"")


async def test_what_is_published_on_a_streams_subject_is_stored(bus, lane, spec, collect):
    bus.publish(lane, b"7")
    got = collect()
    async with bus.pull(spec, acked(got)) as pull:
        pull.grant(1)
        assert numbers(await got.wait(1)) == [7]


async def test_a_pull_brings_what_was_granted_and_no_more(bus, lane, spec, collect):
    await fill(bus, lane, 10)
    got = collect()
    async with bus.pull(spec, acked(got)) as pull:
        await bus.flush()
        assert got.items == []
        pull.grant(3)
        await got.wait(3)
        await bus.flush()
        assert len(got.items) == 3
        pull.grant(2)
        pull.grant(5)
        pull.grant(1)
        await got.wait(8)
        await bus.flush()
        assert numbers(got.items) == list(range(8))


async def test_a_grant_waits_for_messages_to_come(bus, lane, spec, collect):
    got = collect()
    async with bus.pull(spec, acked(got)) as pull:
        pull.grant(100)
        await fill(bus, lane, 5)
        assert numbers(await got.wait(5)) == list(range(5))


async def test_grants_from_inside_the_handler_deliver_everything_once(bus, lane, spec, collect):
    got, granted = collect(), []

    def handle(delivery):
        delivery.ack()
        got(delivery)
        granted[0].grant(1 + len(got.items) % 7)

    async with bus.pull(spec, handle) as pull:
        granted.append(pull)
        pull.grant(1)
        await fill(bus, lane, 200)
        assert numbers(await got.wait(200)) == list(range(200))


async def test_an_acked_message_is_gone(bus, lane, spec, collect):
    await fill(bus, lane, 1)
    first, second = collect(), collect()
    async with bus.pull(spec, acked(first)) as pull:
        pull.grant(1)
        await first.wait(1)
    await bus.flush()
    async with bus.pull(spec, acked(second)) as pull:
        pull.grant(10)
        await bus.append(lane, b"9")
        assert numbers(await second.wait(1)) == [9]


async def test_a_nak_brings_the_message_again_and_counts(bus, lane, spec, collect):
    await fill(bus, lane, 1)
    got = collect()

    def handle(delivery):
        got(delivery)
        if delivery.num_delivered == 1:
            delivery.nak()
        else:
            delivery.ack()

    async with bus.pull(spec, handle) as pull:
        pull.grant(5)
        deliveries = await got.wait(2)
        assert [delivery.num_delivered for delivery in deliveries] == [1, 2]
        assert deliveries[0].stream_seq == deliveries[1].stream_seq


async def test_a_nak_with_a_delay_lets_others_pass(bus, lane, spec, collect):
    await fill(bus, lane, 2)
    got = collect()

    def handle(delivery):
        got(delivery)
        if delivery.payload == b"0" and delivery.num_delivered == 1:
            delivery.nak(0.1)
        else:
            delivery.ack()

    async with bus.pull(spec, handle) as pull:
        pull.grant(5)
        assert numbers(await got.wait(3)) == [0, 1, 0]


async def test_a_forgotten_message_comes_again_after_ack_wait_until_max_deliver(bus, lane, impatient, collect):
    await fill(bus, lane, 1)
    got, marker = collect(), collect()
    other_lane = lane.replace("standard", "batch")
    slow = ConsumerSpec(stream="WORK", name="marker", filter_subject=other_lane, ack_wait_s=1.5, max_deliver=2)
    async with bus.pull(impatient, got) as pull, bus.pull(slow, marker) as marks:
        pull.grant(10)
        await got.wait(3)
        assert [delivery.num_delivered for delivery in got.items] == [1, 2, 3]
        marks.grant(2)
        await bus.append(other_lane, b"0")
        await marker.wait(2)
        assert len(got.items) == 3


async def test_a_terminated_message_never_comes_again(bus, lane, impatient, collect):
    await fill(bus, lane, 2)
    got = collect()

    def handle(delivery):
        got(delivery)
        if delivery.payload == b"0":
            delivery.term("bad\r\nreason")

    async with bus.pull(impatient, handle) as pull:
        pull.grant(10)
        assert sorted(numbers(await got.wait(4))) == [0, 1, 1, 1]


async def test_progress_keeps_a_message(bus, lane, spec, collect, eventually):
    await fill(bus, lane, 2)
    got = collect()
    spec = msgspec.structs.replace(spec, ack_wait_s=1.5)
    async with bus.pull(spec, got) as pull:
        pull.grant(4)
        await got.wait(2)
        kept, _ = got.items

        def keep():
            kept.in_progress()
            return len(got.items) >= 3

        await eventually(keep)
        assert numbers(got.items) == [0, 1, 1]


async def test_a_handler_that_raises_gets_the_message_again(bus, lane, impatient, collect):
    await fill(bus, lane, 2)
    got = collect()

    def handle(delivery):
        got(delivery)
        raise ValueError("broken handler")

    async with bus.pull(impatient, handle) as pull:
        pull.grant(10)
        assert sorted(numbers(await got.wait(6))) == [0, 0, 0, 1, 1, 1]


async def test_two_pulls_share_the_work(bus, other, lane, spec, collect):
    got = collect()
    async with bus.pull(spec, acked(got)) as first, other.pull(spec, acked(got)) as second:
        first.grant(10)
        second.grant(10)
        await fill(bus, lane, 20)
        assert sorted(numbers(await got.wait(20))) == list(range(20))


async def test_messages_of_a_pull_that_was_left_go_to_the_next_one(bus, other, lane, impatient, collect):
    await fill(bus, lane, 3)
    left, got = collect(), collect()
    async with bus.pull(impatient, left) as pull:
        pull.grant(3)
        await left.wait(3)
    async with other.pull(impatient, acked(got)) as pull:
        pull.grant(3)
        deliveries = await got.wait(3)
        assert sorted(numbers(deliveries)) == [0, 1, 2]
        assert {delivery.num_delivered for delivery in deliveries} == {2}


async def test_max_ack_pending_bounds_what_is_held(bus, lane, collect):
    await fill(bus, lane, 4)
    spec = ConsumerSpec(stream="WORK", name="narrow", filter_subject=lane, ack_wait_s=30, max_ack_pending=2)
    got = collect()
    async with bus.pull(spec, got) as pull:
        pull.grant(4)
        await got.wait(2)
        await bus.flush()
        assert len(got.items) == 2
        got.items[0].ack()
        await got.wait(3)


async def test_overlapping_consumers_of_a_work_queue_are_refused(bus, lane, spec, namespace, collect):
    overlapping = ConsumerSpec(stream="WORK", name="all", filter_subject=f"{namespace}.work.v1.m.>")
    async with bus.pull(spec, collect()):
        with pytest.raises(StreamMismatch):
            async with bus.pull(overlapping, collect()):
                pass


async def test_every_consumer_of_a_limits_stream_gets_every_message(bus, namespace, collect):
    subject = f"{namespace}.usage.v1.m.t"
    await fill(bus, subject, 5)
    for name in ("meter", "bill"):
        got = collect()
        spec = ConsumerSpec(stream="USAGE", name=name, filter_subject=f"{namespace}.usage.v1.>")
        async with bus.pull(spec, acked(got)) as pull:
            pull.grant(5)
            assert numbers(await got.wait(5)) == list(range(5))


async def test_a_message_with_a_ttl_goes_away(bus, lane, spec, collect):
    changes, got = collect(), collect()
    await bus.append(lane, b"1", ttl_s=1)
    await bus.append(lane, b"2")
    bucket = bus.bucket("REG")
    async with bucket.watch(changes):
        await bucket.put("worker.clock", b"", ttl_s=1)
        await changes.until(lambda entries: entries and entries[-1].value is None)
    async with bus.pull(spec, acked(got)) as pull:
        pull.grant(2)
        assert numbers(await got.wait(1)) == [2]


async def test_a_ttl_needs_a_stream_that_takes_it(bus, namespace):
    with pytest.raises(BusUnavailable):
        await bus.append(f"{namespace}.usage.v1.m.t", b"", ttl_s=5)


async def test_an_undeclared_stream_or_bucket_is_a_mistake_in_the_program(bus, collect):
    with pytest.raises(BadConfig, match="WORK"):
        async with bus.pull(ConsumerSpec(stream="WROK", name="x", filter_subject="x"), collect()):
            pass
    with pytest.raises(BadConfig, match="REG"):
        bus.bucket("REGG")


async def test_replay_brings_what_is_stored_in_order(bus, namespace, collect):
    got = collect()
    await bus.ensure()
    for number in range(3000):
        bus.publish(f"{namespace}.kv.v1.m.w-{number % 2}", b"%d" % number)
    await bus.append(f"{namespace}.kv.v1.other.w", b"x")  # once this is stored, so is all before it
    await bus.replay("KV", f"{namespace}.kv.v1.m.*", got)
    assert numbers(got.items) == list(range(3000))


async def test_replay_of_nothing_ends_at_once(bus, namespace, collect):
    got = collect()
    await bus.replay("KV", f"{namespace}.kv.v1.m.*", got)
    assert got.items == []


async def test_a_rollup_replaces_what_its_subject_holds(bus, namespace, collect):
    got = collect()
    for payload, headers in ((b"1", None), (b"2", None), (b"3", {"Nats-Rollup": "sub"}), (b"4", None)):
        bus.publish(f"{namespace}.kv.v1.m.w", payload, headers=headers)
        await bus.append(f"{namespace}.kv.v1.m.other", payload)
    await bus.replay("KV", f"{namespace}.kv.v1.m.w", got)
    assert numbers(got.items) == [3, 4]


async def test_what_a_work_queue_holds_can_be_looked_at_beside_its_consumer(bus, namespace, collect):
    got = collect()
    spec = ConsumerSpec(stream="JOBS", name="batches", filter_subject=f"{namespace}.job.v1.*")
    for number in range(3):
        await bus.append(f"{namespace}.job.v1.t{number % 2}", b"%d" % number)
    async with bus.pull(spec, got) as pull:
        pull.grant(2)
        first, _ = await got.wait(2)
        assert await bus.stored("JOBS", f"{namespace}.job.v1.*") == [b"0", b"1", b"2"]
        assert await bus.stored("JOBS", f"{namespace}.job.v1.t0") == [b"0", b"2"]
        first.ack()
        with anyio.fail_after(5):
            while b"0" in await bus.stored("JOBS", f"{namespace}.job.v1.*"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert await bus.stored("JOBS", f"{namespace}.job.v1.t3") == []


async def test_replay_of_an_undeclared_stream_is_refused(bus, namespace, collect):
    with pytest.raises(BadConfig):
        await bus.replay("NONE", f"{namespace}.kv.v1.m.w", collect())
