"""What breaks in nats-py 2.16, and that it does not break here.

Each test runs one scenario twice: on a bare nats-py client, where the defect must show (a new release of nats-py that
mends it fails the test, and our mend can go), and on our bus, where it must not.
"""

import asyncio
import contextlib
import signal
import socket
import time

import anyio
import nats
import nats.errors
import nats.js.errors
import pytest

from bus import outbox, session
from bus.config import BusConfig
from bus.connection import open_bus
from bus.errors import BusUnavailable, Malformed, QueueFull
from bus.metrics import BUS_RECONNECTS, MALFORMED_MESSAGES
from bus.protocol import ConsumerSpec
from bus.subjects import Subjects

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def bare(url, **options):
    """A nats-py client as its documentation shows it, but quiet, and with pings that a test can wait for."""

    async def ignore(error):
        pass

    client = await nats.connect(url, error_cb=ignore, **options)
    try:
        yield client
    finally:
        with contextlib.suppress(Exception), anyio.move_on_after(1):
            await client.close()


def our_bus(url, namespace):
    return open_bus(BusConfig(url=url), Subjects(namespace), name="test")


def malformed(family):
    return MALFORMED_MESSAGES.labels(family=family)._value.get()


# 1


async def test_flush_is_a_barrier(scripted, namespace):
    async with bare(scripted.url) as client:
        await client.publish("a", b"x")
        await client.flush()
        commands = scripted.received[-1].split(b"PING\r\n")
        assert b"PUB a" not in commands[1], "nats-py: PING overtakes what was published before it"

    async with our_bus(scripted.url, namespace) as bus:
        bus.publish("a", b"x")
        await bus.flush()
        assert b"PUB a" in scripted.received[-1].split(b"PING\r\n")[1]


async def test_a_pong_that_comes_too_late_harms_nobody(scripted, namespace, collect):
    async with bare(scripted.url) as client:
        scripted.answers_pings = False
        with pytest.raises(nats.errors.FlushTimeoutError):
            await client.flush(timeout=0.05)
        scripted.say(b"PONG\r\n")
        await asyncio.wait([client._reading_task], timeout=5)
        assert client._reading_task.done(), "nats-py: the read loop is dead"
        assert client.is_connected, "nats-py: and nobody knows"

    scripted.answers_pings = True
    got = collect()
    async with our_bus(scripted.url, namespace) as bus:
        bus.subscribe("a", got)
        await bus.flush()
        scripted.answers_pings = False
        with pytest.raises(BusUnavailable):
            await bus.flush(timeout_s=0.05)
        scripted.say(b"PONG\r\nMSG a 2 1\r\nx\r\n")
        await got.wait(1)
        scripted.answers_pings = True


# 2 and 3

POISON = {
    "subject": b"PUB %(subject)s\xff 1\r\nx\r\n",
    "reply": b"PUB %(subject)s answer.\xff 1\r\nx\r\n",
    "no header version": b"HPUB %(subject)s 5 6\r\nX\r\n\r\nx\r\n",
    "short header": b"HPUB %(subject)s 8 9\r\nNATS/1.0x\r\n",
    "status": b"HPUB %(subject)s 18 19\r\nNATS/1.0 \xff\xff\xff\r\n\r\n\r\nx\r\n",
}


@pytest.mark.parametrize("kind", POISON)
async def test_a_malformed_message_does_not_stop_the_reader(nats_url, namespace, raw, collect, kind):
    subject = f"{namespace}.out.v1.f.w"
    poison = POISON[kind] % {b"subject": subject.encode()}
    good = b"PUB %s 4\r\ngood\r\n" % subject.encode()
    async with bare(nats_url) as client:
        arrived = asyncio.Event()

        async def note(message):
            if message.data == b"good":
                arrived.set()

        await client.subscribe(f"{namespace}.out.v1.f.>", cb=note)
        await client._flush_pending(force_flush=True)
        await client.flush()
        await raw(nats_url, poison + good)
        await asyncio.wait([client._reading_task], timeout=5)
        assert client._reading_task.done(), "nats-py: the read loop is dead"
        assert client.is_connected, "nats-py: and nobody knows"
        assert not arrived.is_set()

    got = collect()
    async with our_bus(nats_url, namespace) as bus:
        before = malformed("out")
        bus.subscribe(f"{namespace}.out.v1.f.>", got)
        await bus.flush()
        await raw(nats_url, poison * 3 + good)
        assert [message.payload for message in await got.wait(1)] == [b"good"]
        assert malformed("out") == before + 3


async def test_a_malformed_message_in_a_stream_is_terminated(nats_url, namespace, raw, collect):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    poison = POISON["no header version"] % {b"subject": lane.encode()}
    good = b"PUB %s 4\r\ngood\r\n" % lane.encode()
    got = collect()
    async with our_bus(nats_url, namespace) as bus:
        await bus.ensure()
        await raw(nats_url, poison + good)
        async with bare(nats_url) as client:
            subscription = await client.jetstream().pull_subscribe(
                lane, durable="bare", stream=f"{namespace.upper()}_WORK", config=nats.js.api.ConsumerConfig(ack_wait=1)
            )
            with pytest.raises(nats.errors.TimeoutError):
                # The message behind the poison is not delivered, now or ever.
                await subscription.fetch(2, timeout=0.5)
            assert client._reading_task.done(), "nats-py: the read loop is dead"
            assert client.is_connected, "nats-py: and nobody knows"
            async with bare(nats_url) as other:
                await other.jetstream().delete_consumer(f"{namespace.upper()}_WORK", "bare")

        def take(delivery):
            delivery.ack()
            got(delivery.payload)

        before = malformed("work")
        async with bus.pull(ConsumerSpec(stream="WORK", name="ours", filter_subject=lane), take) as pull:
            pull.grant(1)
            assert await got.wait(1) == [b"good"]
            await bus.flush()
        assert malformed("work") == before + 1
        async with bare(nats_url) as client:
            state = (await client.jetstream().stream_info(f"{namespace.upper()}_WORK")).state
            assert state.messages == 0


async def test_a_subject_that_the_server_lets_through_does_not_cut_the_connection(
    nats_url, namespace, raw, collect, eventually
):
    poison = b"PUB %s.out.v1.f.w\x0bz 1\r\nx\r\n" % namespace.encode()
    got, theirs = collect(), collect()
    async with bare(nats_url, allow_reconnect=False) as client:

        async def note(message):
            theirs(message)

        await client.subscribe(f"{namespace}.out.v1.>", cb=note)
        await client._flush_pending(force_flush=True)
        await client.flush()
        await raw(nats_url, poison)
        await eventually(lambda: client.is_closed)

    async with our_bus(nats_url, namespace) as bus:
        reconnects = BUS_RECONNECTS._value.get()
        bus.subscribe(f"{namespace}.out.v1.>", got)
        await bus.flush()
        await raw(nats_url, poison)
        (message,) = await got.wait(1)
        assert message.subject == f"{namespace}.out.v1.f.w\x0bz"
        assert reconnects == BUS_RECONNECTS._value.get()


async def test_headers_of_a_stored_message_are_never_taken_for_a_status(nats_url, namespace, raw, collect):
    lane = f"{namespace}.work.v1.m.both.any.standard".encode()
    bodies = [
        b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
        b"NATS/1.0\r\nStatus: 409\r\n\r\n",
        b"NATS/1.0 408\r\nA: b\r\n\r\n",
    ]
    got = collect()

    def take(delivery):
        delivery.ack()
        got(delivery.payload)

    async with our_bus(nats_url, namespace) as bus:
        await bus.ensure()
        for body in bodies:
            await raw(nats_url, b"HPUB %s %d %d\r\n%s\r\n" % (lane, len(body), len(body), body))
        async with bus.pull(ConsumerSpec(stream="WORK", name="ours", filter_subject=lane.decode()), take) as pull:
            pull.grant(4)
            await bus.append(lane.decode(), b"good")
            assert await got.wait(4) == [b"", b"", b"", b"good"]


# 4


async def test_an_append_that_the_server_refuses_fails_at_once(nats_url, namespace):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    async with our_bus(nats_url, namespace) as bus:
        await bus.ensure()
        for _ in range(8192):
            bus.publish(lane, b"")
        await bus.flush()
        async with bare(nats_url) as client:
            future = await client.jetstream().publish_async(lane, b"")
            await client.flush()
            done, _ = await asyncio.wait([future], timeout=0.5)
            assert not done, "nats-py: the future of a refused message stays open"
            future.cancel()
        with anyio.fail_after(30), pytest.raises(QueueFull):
            await bus.append(lane, b"", timeout_s=30)


async def test_requests_end_when_the_connection_does(own_server, namespace, collect):
    async with our_bus(own_server.url, namespace) as bus:
        bus.subscribe(f"{namespace}.ctl.v1.w", collect())
        async with anyio.create_task_group() as tasks:
            failed = anyio.Event()

            async def ask():
                with pytest.raises(BusUnavailable):
                    await bus.request(f"{namespace}.ctl.v1.w", b"", timeout_s=30)
                failed.set()

            tasks.start_soon(ask)
            await bus.flush()
            await own_server.kill()
            with anyio.fail_after(30):
                await failed.wait()
        assert len(bus._link._replies) == 0


# 5


def stop_reading(server):
    server.process.send_signal(signal.SIGSTOP)


def go_on(server):
    server.process.send_signal(signal.SIGCONT)


async def test_a_dead_link_with_unsent_bytes_is_cut(own_server, namespace, eventually, monkeypatch):
    megabyte = bytes(2**20)
    disconnected = asyncio.Event()

    async def note():
        disconnected.set()

    monkeypatch.setattr(session, "PING_INTERVAL_S", 0.2)
    async with our_bus(own_server.url, namespace) as bus:
        client = await nats.connect(
            own_server.url,
            disconnected_cb=note,
            ping_interval=0.2,
            max_outstanding_pings=2,
            pending_size=64 * 2**20,
        )
        stop_reading(own_server)
        for _ in range(14):
            bus.publish("a", megabyte[: 2**20 - 100])
            await client.publish("a", megabyte)
        await eventually(lambda: not bus.is_connected)
        await eventually(lambda: client.is_reconnecting)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(disconnected.wait(), 1)
        assert not disconnected.is_set(), "nats-py: waits for the write buffer instead of reconnecting"
        go_on(own_server)
        await bus.flush(timeout_s=30)
        # Its close() would wait like its reconnect.
        client._reconnection_task.cancel()
        client._transport._io_writer.transport.abort()


async def test_unacknowledged_bytes_end_a_connection_after_four_seconds(own_server, namespace, eventually, monkeypatch):
    """Without pings: it is the kernel that gives up, at nats-py's client after a quarter of an hour."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this platform has no TCP_USER_TIMEOUT")
    monkeypatch.setattr(session, "PING_INTERVAL_S", 60.0)
    async with our_bus(own_server.url, namespace) as bus:
        # The option belongs to a socket: a connection that replaced another one has it too.
        await own_server.kill()
        await own_server.start()
        await bus.flush(timeout_s=30)
        ours = bus._link._session._transport._io_writer.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        client = await nats.connect(own_server.url, pending_size=64 * 2**20)
        stop_reading(own_server)
        for _ in range(14):
            bus.publish("a", bytes(2**20 - 100))
            await client.publish("a", bytes(2**20))
        await eventually(lambda: not bus.is_connected)
        assert client.is_connected, "nats-py: waits for the kernel's default"
        client._transport._io_writer.transport.abort()
        go_on(own_server)
        await bus.flush(timeout_s=30)
        await eventually(lambda: client.is_connected)
        await client.close()


# 6


async def test_a_slow_handler_loses_nothing(nats_url, namespace):
    count = 3000
    kept, ours = [], []
    async with bare(nats_url) as client, our_bus(nats_url, namespace) as bus:

        async def slow(message):
            kept.append(message)
            await asyncio.sleep(0.0005)

        await client.subscribe(f"{namespace}.out.v1.f.w", cb=slow, pending_msgs_limit=100)
        bus.subscribe(f"{namespace}.out.v1.f.w", ours.append)
        await client._flush_pending(force_flush=True)
        await client.flush()
        for number in range(count):
            bus.publish(f"{namespace}.out.v1.f.w", b"%d" % number)
        await bus.flush()
        assert [int(message.payload) for message in ours] == list(range(count))
        await client.flush()
        assert len(kept) < count, "nats-py: drops the newest"


# 7


async def test_little_is_kept_while_there_is_no_connection(own_server, namespace, eventually, collect):
    async with our_bus(own_server.url, namespace) as bus, bare(own_server.url) as client:
        await own_server.kill()
        await eventually(lambda: not bus.is_connected and not client.is_connected)
        for _ in range(15):
            await client.publish("a", bytes(128 * 1024))
        assert client.pending_data_size > outbox.DOWN_BYTES, "nats-py: keeps 2 MiB of stale messages"
        for _ in range(7):
            bus.publish("a", bytes(128 * 1024))
        with pytest.raises(BusUnavailable):
            bus.publish("a", bytes(128 * 1024))
        with pytest.raises(BusUnavailable):
            await bus.request("a", b"", timeout_s=0.05)
        with pytest.raises(BusUnavailable):
            await bus.append("a", b"", timeout_s=0.05)
        await own_server.start()
        await bus.flush(timeout_s=30)


async def test_a_broker_that_does_not_read_cannot_fill_our_memory(own_server, namespace):
    async with our_bus(own_server.url, namespace) as bus:
        stop_reading(own_server)
        for _ in range(15):
            bus.publish("a", bytes(2**20))
        with pytest.raises(BusUnavailable):
            bus.publish("a", bytes(2**20))
        go_on(own_server)
        await bus.flush(timeout_s=30)


# 8


async def test_the_connection_is_back_soon_after_the_server(own_server, namespace, eventually, undisturbed):
    async def come_back() -> None:
        async with bare(own_server.url) as client, our_bus(own_server.url, namespace) as bus:
            await own_server.kill()
            await eventually(lambda: not bus.is_connected and client.is_reconnecting)
            await own_server.start()
            back_at = time.monotonic()
            await eventually(lambda: bus.is_connected)
            assert time.monotonic() - back_at < 1.0
            assert not client.is_connected, "nats-py: waits 2 s between attempts"

    await undisturbed(come_back, 0.1)


# 9


async def test_an_error_of_the_server_does_not_end_the_bus(scripted, namespace, eventually, collect):
    async with bare(scripted.url) as client:
        scripted.say(b"-ERR 'User Authentication Expired'\r\n")
        await eventually(lambda: client.is_closed)
        with pytest.raises(nats.errors.ConnectionClosedError):
            await client.publish("a", b"")

    got = collect()
    async with our_bus(scripted.url, namespace) as bus:
        bus.subscribe("kept.before", got)
        for line in (
            b"-ERR 'User Authentication Expired'\r\n",
            b"-ERR\r\n",
            b"MSG a b c\r\n",
            b"-ERR '\xff'\r\n",
            b"X\r\n",
        ):
            connections = scripted.num_connections
            await eventually(lambda: bus.is_connected)
            scripted.say(line)
            await eventually(lambda: scripted.num_connections > connections)  # noqa: B023
            await eventually(lambda: bus.is_connected)
            await bus.flush()
            assert b"SUB kept.before  2\r\n" in scripted.received[-1]
        scripted.say(b"-ERR 'Permissions Violation for Publish to \"a\"'\r\nMSG kept.before 2 1\r\nx\r\n")
        await got.wait(1)
        assert bus.is_connected


# 10


async def test_streams_are_there_again_after_the_broker_lost_them(own_server, namespace, eventually):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    async with our_bus(own_server.url, namespace) as bus, bare(own_server.url, reconnect_time_wait=0.05) as client:
        await client.jetstream().add_stream(name="BARE", subjects=["bare"], storage="memory")
        await bus.ensure()
        await own_server.kill()
        await own_server.start()
        assert (await bus.append(lane, b"", timeout_s=30)).stream_seq == 1
        await eventually(lambda: client.is_connected)
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await client.jetstream().publish("bare", b"")


# 11


async def test_a_message_costs_less_than_with_callbacks(nats_url, namespace):
    count = 4000

    async def measure(client, seen, subscribe):
        best = 1e9
        for _ in range(3):
            seen.clear()
            for _ in range(count):
                client.publish(f"{namespace}.out.v1.f.{subscribe}", b"x" * 64)
            started = time.thread_time()
            await client.flush()
            while len(seen) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)
            best = min(best, time.thread_time() - started)
        return best

    async with our_bus(nats_url, namespace) as publisher, bare(nats_url) as client:
        theirs, ours = [], []

        async def note(message):
            theirs.append(message)

        await client.subscribe(f"{namespace}.out.v1.f.bare", cb=note)
        await client._flush_pending(force_flush=True)
        await client.flush()
        publisher.subscribe(f"{namespace}.out.v1.f.ours", ours.append)
        bare_s = await measure(publisher, theirs, "bare")
        ours_s = await measure(publisher, ours, "ours")
        assert ours_s < bare_s


# 12


async def test_a_pull_survives_the_loss_of_its_consumer(nats_url, namespace, collect):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    stream = f"{namespace.upper()}_WORK"
    got = collect()

    def take(delivery):
        delivery.ack()
        got(delivery.payload)

    async with our_bus(nats_url, namespace) as bus, bare(nats_url) as client:
        await bus.ensure()
        js = client.jetstream()
        subscription = await js.pull_subscribe(lane, durable="bare", stream=stream)
        await js.delete_consumer(stream, "bare")
        with pytest.raises((nats.errors.Error, nats.js.errors.Error)):
            await subscription.fetch(1, timeout=0.5)
        async with bus.pull(ConsumerSpec(stream="WORK", name="ours", filter_subject=lane), take) as pull:
            pull.grant(2)
            await bus.append(lane, b"1")
            await got.wait(1)
            await bus.flush()
            await js.delete_consumer(stream, "ours")
            await bus.append(lane, b"2")
            assert await got.wait(2) == [b"1", b"2"]


# 13


@pytest.mark.parametrize("subject", ["a..b", "a.*", "a.>", "a\x00b", ".a"])
async def test_subjects_are_checked_before_they_are_sent(scripted, namespace, subject):
    async with bare(scripted.url) as client:
        await client.publish(subject, b"")
        await client._flush_pending(force_flush=True)
        await client.flush()
        assert b"PUB %s " % subject.encode() in scripted.received[-1], "nats-py: sends it"
    async with our_bus(scripted.url, namespace) as bus:
        with pytest.raises(Malformed):
            bus.publish(subject, b"")


# 14


async def test_a_callers_headers_stay_as_they_are(nats_url, namespace):
    async with our_bus(nats_url, namespace) as bus, bare(nats_url) as client:
        await bus.ensure()
        headers = {"a": "b"}
        await client.jetstream().publish(
            f"{namespace}.work.v1.m.both.any.standard", b"", headers=headers, stream=f"{namespace.upper()}_WORK"
        )
        assert headers != {"a": "b"}, "nats-py: writes into the caller's dict"
        headers = {"a": "b"}
        bus.publish(f"{namespace}.work.v1.m.both.any.standard", b"", headers=headers)
        assert headers == {"a": "b"}


# The order of closing


async def test_closing_does_not_wait_for_pulls(nats_url, namespace, collect, eventually):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    async with our_bus(nats_url, namespace) as bus, bare(nats_url) as client:
        await bus.ensure()
        subscription = await client.jetstream().pull_subscribe(lane, durable="bare", stream=f"{namespace.upper()}_WORK")
        fetching = asyncio.ensure_future(subscription.fetch(1, timeout=30))
        await eventually(lambda: subscription._sub._pending_next_msgs_calls)
        fetching.cancel()
        await bus.append(lane, b"")
        draining = asyncio.ensure_future(client.drain())
        done, _ = await asyncio.wait([draining], timeout=0.5)
        assert not done, "nats-py: drain waits for a fetch that nobody waits for"
        draining.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await draining
    with anyio.fail_after(20):
        async with our_bus(nats_url, namespace) as bus:
            other_lane = lane.replace(".m.", ".n.")
            async with bus.pull(ConsumerSpec(stream="WORK", name="ours", filter_subject=other_lane), collect()) as pull:
                pull.grant(10)
                await bus.flush()
