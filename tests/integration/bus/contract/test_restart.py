"""A broker that dies and comes back without what it held in memory: the same on a server and in memory."""

import anyio
import pytest

from bus.codec import encode
from bus.errors import NoWorker
from bus.messages.fleet import FrontendCard
from bus.protocol import ConsumerSpec
from bus.registry import keep_card, watch_cards

pytestmark = pytest.mark.anyio


def card(frontend):
    return FrontendCard(frontend=frontend, url="", host="h", pid=1, version="0", started_at=0.0)


async def test_everything_goes_on_after_the_broker_lost_its_memory(breakable, collect):
    namespace = breakable.subjects.namespace
    lane = f"{namespace}.work.v1.m.both.any.standard"
    spec = ConsumerSpec(stream="WORK", name="any-m", filter_subject=lane)
    jobs, heard, restored = collect(), collect(), anyio.Event()

    def take(delivery):
        delivery.ack()
        jobs(delivery.payload)

    async def restore():
        restored.set()

    async with breakable.connect("a") as bus, breakable.connect("b") as other:
        await bus.ensure()
        await other.ensure()
        bus.on_reconnect(restore)
        bus.subscribe(f"{namespace}.load.v1.>", heard)
        await bus.append(f"{namespace}.work.v1.lost.both.any.standard", b"lost")
        async with bus.pull(spec, take) as pull:
            pull.grant(10)
            await bus.append(lane, b"before")
            await jobs.wait(1)
            await breakable.restart()
            with anyio.fail_after(30):
                await restored.wait()
            ack = await other.append(lane, b"after", timeout_s=30)
            assert ack.stream_seq == 1
            assert await jobs.wait(2) == [b"before", b"after"]
        other.publish(f"{namespace}.load.v1.m.w", b"")
        await heard.wait(1)


async def test_file_streams_and_their_consumers_survive(breakable, collect):
    namespace = breakable.subjects.namespace
    subject = f"{namespace}.usage.v1.m.t"
    spec = ConsumerSpec(stream="USAGE", name="meter", filter_subject=f"{namespace}.usage.v1.>")
    got = collect()

    def take(delivery):
        delivery.ack()
        got(delivery.payload)

    async with breakable.connect("a") as bus:
        await bus.ensure()
        async with bus.pull(spec, take) as pull:
            pull.grant(10)
            await bus.append(subject, b"1")
            await got.wait(1)
            await bus.flush()
            await breakable.restart()
            ack = await bus.append(subject, b"2", timeout_s=30)
            assert ack.stream_seq == 2
            await got.until(lambda payloads: b"2" in payloads)
        await bus.put_blob(b"x")


async def test_cards_come_back_without_a_gap_and_those_of_the_dead_go(breakable, collect):
    seen = collect()

    def note(name, found):
        seen((name, found is not None))

    async with breakable.connect("watcher") as bus, breakable.connect("owner") as owner:
        await bus.ensure()
        await owner.ensure()
        async with keep_card(owner, "frontend.f", card("f")), watch_cards(bus, "frontend", FrontendCard, note):
            async with keep_card(owner, "frontend.g", card("g")):
                await seen.until(lambda items: ("g", True) in items)
                # The owner of h dies with the broker: its card is not put again.
                await bus.bucket("REG").put("frontend.h", encode(card("h")), ttl_s=60)
                await seen.until(lambda items: ("h", True) in items)
                await breakable.restart()
                await seen.until(lambda items: ("h", False) in items)
                assert ("f", False) not in seen.items
                assert ("g", False) not in seen.items
            await seen.until(lambda items: ("g", False) in items)


async def test_an_error_of_the_body_comes_out_as_it_is(breakable):
    async def fail():
        async with breakable.connect("a") as bus:
            await bus.ensure()
            async with keep_card(bus, "frontend.f", card("f")):
                raise NoWorker("as it is")

    with pytest.raises(NoWorker):
        await fail()
