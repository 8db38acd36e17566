"""Publish, subscribe, request, flush: the same on a server and in memory."""

import anyio
import pytest

from bus.errors import BusUnavailable, Malformed, NoResponder

pytestmark = pytest.mark.anyio


async def test_a_message_arrives_whole(bus, other, namespace, collect):
    got = collect()
    other.subscribe(f"{namespace}.out.v1.f.w", got)
    await other.flush()
    headers = {"Trace-Id": "abc", "X": ""}
    bus.publish(f"{namespace}.out.v1.f.w", b"\x00payload", reply="answer.here", headers=headers)
    (message,) = await got.wait(1)
    assert message.subject == f"{namespace}.out.v1.f.w"
    assert message.payload == b"\x00payload"
    assert message.reply == "answer.here"
    assert message.headers == {"Trace-Id": "abc", "X": ""}
    assert headers == {"Trace-Id": "abc", "X": ""}


async def test_large_and_empty_payloads_arrive(bus, namespace, collect):
    got = collect()
    bus.subscribe(f"{namespace}.out.>", got)
    large = bytes(range(256)) * 4096
    for payload in (b"", large, b"x"):
        bus.publish(f"{namespace}.out.v1.f.w", payload)
    assert [message.payload for message in await got.wait(3)] == [b"", large, b"x"]


async def test_what_is_deferred_comes_once_and_after_what_asked_for_it(bus, other, namespace, collect):
    order = []

    def take(message):
        order.append(message.payload)
        if message.payload == b"0":
            bus.defer(lambda: order.append("deferred"))

    bus.subscribe(f"{namespace}.out.v1.f.w", take)
    await bus.flush()
    for number in range(20):
        other.publish(f"{namespace}.out.v1.f.w", b"%d" % number)
    await other.flush()
    await bus.flush()
    assert order.count("deferred") == 1
    assert [item for item in order if item != "deferred"] == [b"%d" % number for number in range(20)]
    assert order.index("deferred") > order.index(b"0")


async def test_what_is_deferred_outside_of_messages_comes_soon_and_may_fail(bus):
    done = anyio.Event()

    def fail():
        bus.defer(done.set)
        raise RuntimeError("a bug")

    bus.defer(fail)
    assert not done.is_set()
    with anyio.fail_after(30):
        await done.wait()


async def test_wildcards_take_one_token_or_the_rest(bus, namespace, collect):
    star, rest, exact = collect(), collect(), collect()
    bus.subscribe(f"{namespace}.load.v1.*.w", star)
    bus.subscribe(f"{namespace}.load.v1.>", rest)
    bus.subscribe(f"{namespace}.load.v1.m.w", exact)
    for subject in ("load.v1.m.w", "load.v1.m2.w", "load.v1.m.w.more", "load.v1", "load.v2.m.w"):
        bus.publish(f"{namespace}.{subject}", b"")
    await bus.flush()
    assert [message.subject.removeprefix(f"{namespace}.load.") for message in star.items] == ["v1.m.w", "v1.m2.w"]
    assert len(rest.items) == 3
    assert len(exact.items) == 1


async def test_messages_of_one_sender_arrive_in_order_across_subscriptions(bus, other, namespace, collect):
    got = collect()
    other.subscribe(f"{namespace}.out.v1.f.a", got)
    other.subscribe(f"{namespace}.out.v1.f.b", got)
    await other.flush()
    for number in range(500):
        bus.publish(f"{namespace}.out.v1.f.{'ab'[number % 2]}", b"%d" % number)
    assert [int(message.payload) for message in await got.wait(500)] == list(range(500))


async def test_a_queue_group_shares_and_plain_subscribers_get_all(bus, other, namespace, collect):
    first, second, plain = collect(), collect(), collect()
    bus.subscribe(f"{namespace}.ask.v1.>", first, queue="doors")
    other.subscribe(f"{namespace}.ask.v1.>", second, queue="doors")
    other.subscribe(f"{namespace}.ask.v1.>", plain)
    await other.flush()
    for number in range(100):
        bus.publish(f"{namespace}.ask.v1.m.t", b"%d" % number)
    await plain.wait(100)
    await bus.flush()
    shared = [int(message.payload) for message in first.items + second.items]
    assert sorted(shared) == list(range(100))
    assert first.items
    assert second.items


async def test_unsubscribed_handlers_are_not_called_again(bus, namespace, collect):
    got, marker = collect(), collect()
    subscription = bus.subscribe(f"{namespace}.out.v1.f.w", got)
    bus.subscribe(f"{namespace}.out.v1.f.w", marker)
    bus.publish(f"{namespace}.out.v1.f.w", b"1")
    await marker.wait(1)
    subscription.unsubscribe()
    subscription.unsubscribe()
    bus.publish(f"{namespace}.out.v1.f.w", b"2")
    await marker.wait(2)
    assert [message.payload for message in got.items] == [b"1"]


async def test_handlers_are_not_called_inside_publish(bus, namespace, collect):
    got = collect()
    bus.subscribe(f"{namespace}.out.v1.f.w", got)
    bus.publish(f"{namespace}.out.v1.f.w", b"1")
    assert got.items == []
    await got.wait(1)


async def test_a_handler_that_raises_harms_nobody(bus, namespace, collect):
    got = collect()

    def fail(message):
        raise ValueError("broken handler")

    bus.subscribe(f"{namespace}.out.v1.f.w", fail)
    bus.subscribe(f"{namespace}.out.v1.f.w", got)
    for _ in range(3):
        bus.publish(f"{namespace}.out.v1.f.w", b"1")
    await got.wait(3)
    assert bus.is_connected


async def test_a_request_returns_the_first_reply(bus, other, namespace):
    def answer(message):
        other.publish(message.reply, b"first " + message.payload)
        other.publish(message.reply, b"second")

    other.subscribe(f"{namespace}.ctl.v1.w", answer)
    await other.flush()
    replies = [await bus.request(f"{namespace}.ctl.v1.w", b"%d" % number) for number in range(3)]
    assert [reply.payload for reply in replies] == [b"first 0", b"first 1", b"first 2"]


async def test_a_request_that_nobody_hears_fails_at_once(bus, namespace):
    with anyio.fail_after(20), pytest.raises(NoResponder):
        await bus.request(f"{namespace}.ctl.v1.nobody", b"", timeout_s=30)


async def test_a_request_that_nobody_answers_times_out(bus, namespace, collect):
    bus.subscribe(f"{namespace}.ctl.v1.w", collect())
    with pytest.raises(BusUnavailable) as caught:
        await bus.request(f"{namespace}.ctl.v1.w", b"", timeout_s=0.05)
    assert not isinstance(caught.value, NoResponder)


async def test_flush_is_a_barrier(bus, other, namespace, collect):
    for number in range(100):
        got = collect()
        subscription = bus.subscribe(f"{namespace}.out.v1.f.w", got)
        await bus.flush()
        other.publish(f"{namespace}.out.v1.f.w", b"%d" % number)
        await other.flush()
        await bus.flush()
        assert [message.payload for message in got.items] == [b"%d" % number]
        subscription.unsubscribe()


@pytest.mark.parametrize(
    "subject",
    [
        "",
        ".",
        "a..b",
        "a.",
        ".a",
        "a b",
        "a\r\nPUB b 0\r\n",
        "a\tb",
        "a.*",
        "a.>",
        "a\x00b",
        "a\x7fb",
        "a\u2028b",
        "a" * 2000,
    ],
)
async def test_hostile_subjects_are_refused(bus, subject, namespace):
    with pytest.raises(Malformed):
        bus.publish(subject, b"")
    with pytest.raises(Malformed):
        await bus.request(subject, b"")
    if subject:
        with pytest.raises(Malformed):
            bus.publish(f"{namespace}.out.v1.f.w", b"", reply=subject)


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "a b", "a\r\n", "a.b>", "a.*b", ">.a", " "])
async def test_hostile_filters_are_refused(bus, pattern, collect):
    with pytest.raises(Malformed):
        bus.subscribe(pattern, collect())


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"": "c"}, {"a": "b\r\nc: d"}, {"a\n": "b"}, {"a:b": "c"}])
async def test_hostile_headers_are_refused(bus, headers, namespace):
    with pytest.raises(Malformed):
        bus.publish(f"{namespace}.out.v1.f.w", b"", headers=headers)


async def test_a_payload_that_the_broker_would_refuse_is_refused_here(bus, namespace):
    with pytest.raises(Malformed):
        bus.publish(f"{namespace}.out.v1.f.w", bytes(bus.max_payload_bytes + 1))
    await bus.flush()
    assert bus.is_connected
