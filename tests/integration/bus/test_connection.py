"""The bus on a real server: first connection, streams as declared, lost connections."""

import asyncio
import time

import anyio
import nats
import pytest
from structlog.testing import capture_logs

from bus.config import BusConfig
from bus.connection import open_bus
from bus.errors import BadConfig, BusUnavailable, NoWorker, StreamMismatch
from bus.link import Link
from bus.protocol import ConsumerSpec
from bus.server import free_port
from bus.subjects import Subjects

pytestmark = pytest.mark.anyio


def our_bus(url, namespace, **settings):
    return open_bus(BusConfig(url=url, **settings), Subjects(namespace), name="test")


async def use(context):
    async with context:
        pass


async def test_no_server_is_said_with_what_to_do_next(namespace):
    url = f"nats://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(BusUnavailable) as caught:
        await use(our_bus(url, namespace, connect_timeout_s=0.2))
    text = str(caught.value)
    assert "busway doctor" in text
    assert "0.2 s" in text
    assert "secret" not in text


async def test_a_server_that_comes_a_little_later_is_waited_for(own_server, namespace):
    await own_server.kill()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(own_server.start)
        async with our_bus(own_server.url, namespace) as bus:
            await bus.flush()


async def test_another_server_of_the_list_is_used(nats_url, namespace):
    async with our_bus(f"nats://127.0.0.1:{free_port()}, {nats_url}", namespace) as bus:
        await bus.flush()


async def test_a_peer_that_is_no_nats_server_is_no_server(namespace):
    async def greet(stream):
        async with stream:
            await stream.send(b"INFO []\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet)
        with pytest.raises(BusUnavailable):
            await use(our_bus(f"nats://127.0.0.1:{port}", namespace, connect_timeout_s=0.2))
        tasks.cancel_scope.cancel()


async def test_missing_credentials_are_named(nats_url, namespace):
    with pytest.raises((BusUnavailable, BadConfig), match=r"creds|nkeys"):
        await use(our_bus(nats_url, namespace, connect_timeout_s=0.2, credentials_file="/nowhere/user.creds"))


async def test_an_error_of_the_body_comes_out_as_it_is(nats_url, namespace):
    async def fail():
        async with our_bus(nats_url, namespace):
            raise NoWorker("as it is")

    with pytest.raises(NoWorker):
        await fail()


async def test_ensure_can_be_called_by_many_at_once(nats_url, namespace):
    async with our_bus(nats_url, namespace) as one, our_bus(nats_url, namespace) as two:
        async with anyio.create_task_group() as tasks:
            for bus in (one, two, one, two):
                tasks.start_soon(bus.ensure)
        await one.append(f"{namespace}.work.v1.m.both.any.standard", b"")


async def test_a_setting_that_can_be_changed_is_changed(nats_url, namespace):
    name = f"{namespace.upper()}_WORK"
    async with our_bus(nats_url, namespace) as bus:
        await bus.ensure()
        client = await nats.connect(nats_url)
        js = client.jetstream()
        info = await js.stream_info(name)
        await js.update_stream(info.config.evolve(max_msgs=7, description="another"))
        await bus.ensure()
        config = (await js.stream_info(name)).config
        assert config.max_msgs == 20_000
        assert config.description != "another"
        await client.close()


async def test_a_setting_that_cannot_be_changed_is_named_with_its_mend(nats_url, namespace):
    name = f"{namespace.upper()}_WORK"
    client = await nats.connect(nats_url)
    await client.jetstream().add_stream(
        name=name, subjects=[f"{namespace}.work.v1.>"], storage="file", retention="limits"
    )
    async with our_bus(nats_url, namespace) as bus:
        with pytest.raises(StreamMismatch) as caught:
            await bus.ensure()
    for part in (name, "storage is 'file', should be 'memory'", "retention", f"nats stream rm --force {name}"):
        assert part in str(caught.value)
    await client.close()


async def test_a_stream_on_the_same_subjects_is_a_mismatch(nats_url, namespace):
    client = await nats.connect(nats_url)
    await client.jetstream().add_stream(name=f"{namespace}-other", subjects=[f"{namespace}.work.v1.>"])
    async with our_bus(nats_url, namespace) as bus:
        with pytest.raises(StreamMismatch, match="overlap"):
            await bus.ensure()
    await client.close()


async def test_a_cut_connection_is_made_again_and_everything_goes_on(nats_url, namespace, collect):
    lane = f"{namespace}.work.v1.m.both.any.standard"
    jobs, heard, seen, restored = collect(), collect(), collect(), collect()

    def take(delivery):
        jobs(delivery)
        if delivery.num_delivered > 1:
            delivery.ack()

    async def taken(payload, times):
        """Wait until a message was delivered so often; it comes again for as long as we are too slow to say so."""
        await jobs.until(lambda items: any((e.payload, e.num_delivered) == (payload, times) for e in items))

    async def restore():
        restored(None)

    async with our_bus(nats_url, namespace) as bus, our_bus(nats_url, namespace) as other:
        await bus.ensure()
        bus.on_reconnect(restore)
        bus.subscribe(f"{namespace}.load.v1.>", heard)
        spec = ConsumerSpec(stream="WORK", name="any", filter_subject=lane, ack_wait_s=0.5)
        async with bus.pull(spec, take) as pull, bus.bucket("REG").watch(seen):
            pull.grant(100)
            for number in range(1, 4):
                payload = b"held %d" % number
                await other.append(lane, payload)
                await taken(payload, 1)
                bus._link._session._transport.abort()
                await restored.wait(number)
                await taken(payload, 2)
                await other.bucket("REG").put("a", b"%d" % number)
                await seen.wait(number)
                other.publish(f"{namespace}.load.v1.m.w", b"")
                await heard.wait(number)
        assert [entry.value for entry in seen.items] == [b"1", b"2", b"3"]


async def test_an_acknowledgement_does_not_reach_another_server(own_server, namespace, collect):
    """Position 1 of the stream is another message after the restart."""
    lane = f"{namespace}.work.v1.m.both.any.standard"
    jobs = collect()
    spec = ConsumerSpec(stream="WORK", name="any", filter_subject=lane, ack_wait_s=0.3)
    async with our_bus(own_server.url, namespace) as bus:
        await bus.ensure()
        async with bus.pull(spec, jobs) as pull:
            pull.grant(10)
            await bus.append(lane, b"before")
            before = (await jobs.wait(1))[0]
            await own_server.kill()
            before.ack()
            await own_server.start()
            await bus.append(lane, b"after", timeout_s=30)
            await jobs.until(lambda items: items[-1].payload == b"after")
            before.ack()
            await bus.flush()
            # Still unacknowledged, so it comes again.
            num_before = len(jobs.items)
            await jobs.until(lambda items: any(each.payload == b"after" for each in items[num_before:]))


async def test_a_failing_restore_does_not_stop_the_others(own_server, namespace, collect):
    restored = collect()

    async def fail():
        raise ValueError("broken")

    async def restore():
        restored(None)

    async with our_bus(own_server.url, namespace) as bus:
        bus.on_reconnect(fail)
        bus.on_reconnect(restore)
        await own_server.kill()
        await own_server.start()
        await restored.wait(1)
        await bus.flush()


async def test_what_was_published_before_closing_arrives(nats_url, namespace, collect):
    got = collect()
    async with our_bus(nats_url, namespace) as receiver:
        receiver.subscribe(f"{namespace}.out.v1.f.w", got)
        await receiver.flush()
        async with our_bus(nats_url, namespace) as sender:
            for _ in range(1000):
                sender.publish(f"{namespace}.out.v1.f.w", bytes(1000))
        await got.wait(1000)


async def test_closing_while_the_server_is_away_does_not_wait(own_server, namespace, eventually):
    with anyio.fail_after(30):
        async with our_bus(own_server.url, namespace) as bus:
            await own_server.kill()
            await eventually(lambda: not bus.is_connected)


async def test_a_restore_that_was_cut_off_is_done_on_the_next_connection(own_server, namespace):
    """The server is the same then, but what it lost is still missing."""
    link = Link(BusConfig(url=own_server.url), Subjects(namespace), "test")
    calls = []
    is_done = anyio.Event()

    async def restore(is_new_server):
        calls.append(is_new_server)
        if len(calls) == 1:
            link._session.end(ConnectionError("cut"))
            raise BusUnavailable("cut")
        is_done.set()

    await link.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.keep, restore)
        await own_server.kill()
        await own_server.start()
        with anyio.fail_after(30):
            await is_done.wait()
        await link.close()
        tasks.cancel_scope.cancel()
    assert calls == [True, True]


async def test_a_server_that_throws_us_out_is_not_asked_without_a_pause(scripted, namespace, eventually):
    async with our_bus(scripted.url, namespace):
        started = time.monotonic()
        for count in range(2, 8):
            scripted.say(b"-ERR 'Maximum Connections Exceeded'\r\n")
            await eventually(lambda: scripted.num_connections == count)  # noqa: B023
        assert time.monotonic() - started > 0.15


async def test_tasks_and_sockets_do_not_pile_up_over_reconnects(own_server, namespace, eventually):
    async with our_bus(own_server.url, namespace) as bus:
        await bus.flush()
        before = len(asyncio.all_tasks())
        for _ in range(5):
            session = bus._link._session
            session._transport.abort()
            await eventually(lambda: bus._link._session is not session)  # noqa: B023
            await bus.flush()
        await eventually(lambda: len(asyncio.all_tasks()) <= before)


async def test_blobs_and_buckets_are_readable_by_nats_tools(nats_url, namespace):
    async with our_bus(nats_url, namespace) as bus:
        await bus.ensure()
        data = bytes(range(256)) * 1000
        digest = await bus.put_blob(data)
        await bus.bucket("STATE").put("a.b", b"value")
        client = await nats.connect(nats_url)
        js = client.jetstream()
        store = await js.object_store(f"{namespace.upper()}_FILES")
        assert (await store.get(digest)).data == data
        bucket = await js.key_value(f"{namespace.upper()}_STATE")
        assert (await bucket.get("a.b")).value == b"value"
        await bucket.put("c", b"theirs")
        await bucket.delete("a.b")
        assert (await bus.bucket("STATE").get("c")).value == b"theirs"
        assert await bus.bucket("STATE").get("a.b") is None
        await client.close()


async def test_a_connection_without_echo_hears_others_and_its_streams_but_not_itself(nats_url, namespace):
    subjects = Subjects(namespace)
    heard, delivered = [], asyncio.Queue()
    async with (
        open_bus(BusConfig(url=nats_url), subjects, name="silent", has_echo=False) as silent,
        our_bus(nats_url, namespace) as other,
    ):
        await silent.ensure()
        silent.subscribe(subjects.route("*", "*"), lambda message: heard.append(message.payload))
        await silent.flush()
        silent.publish(subjects.route("m", "r"), b"its own")
        await silent.flush()
        other.publish(subjects.route("m", "r"), b"of another")
        await other.flush()
        await silent.flush()
        assert heard == [b"of another"]
        spec = ConsumerSpec(stream="REQ", name="all", filter_subject=subjects.req("m", "standard", "*"))
        async with silent.pull(spec, delivered.put_nowait) as pull:
            pull.grant(1)
            await silent.append(subjects.req("m", "standard", "t"), b"job")
            with anyio.fail_after(30):
                assert (await delivered.get()).payload == b"job"


async def test_a_pull_that_cannot_go_on_says_so_once_and_when_it_does_again(nats_url, namespace):
    stream = f"KV_{namespace.upper()}_REG"
    tries, entries = anyio.Semaphore(0), []
    client = await nats.connect(nats_url)

    async def note_try(message):
        tries.release()

    with capture_logs() as logs:
        async with our_bus(nats_url, namespace) as bus:
            await bus.ensure()
            async with bus.bucket("REG").watch(entries.append):
                await client.subscribe(f"$JS.API.CONSUMER.CREATE.{stream}.>", cb=note_try)
                await client.flush()
                with anyio.fail_after(30):
                    await client.jetstream().delete_stream(stream)
                    for _ in range(4):
                        await tries.acquire()
                    await bus.ensure()
                    await bus.bucket("REG").put("key", b"value")
                    while not entries:  # noqa: ASYNC110
                        await anyio.sleep(0.01)
    await client.close()
    told = [(each["event"], each["stream"]) for each in logs if each["event"].startswith("pull.")]
    assert told == [("pull.interrupted", stream), ("pull.resumed", stream)]
