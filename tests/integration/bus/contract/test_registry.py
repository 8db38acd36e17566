"""Cards and typed messages: the same on a server and in memory."""

import pytest

from bus.codec import encode
from bus.messages.fleet import FrontendCard, WorkerLoad
from bus.metrics import MALFORMED_MESSAGES
from bus.registry import keep_card, keep_shared_card, new_id, watch_cards
from bus.subjects import slug
from bus.typed import subscribe_typed

pytestmark = pytest.mark.anyio


def card(frontend):
    return FrontendCard(frontend=frontend, url="http://h", host="h", pid=1, version="0", started_at=0.0)


def test_ids_are_subject_tokens():
    ids = {new_id("w") for _ in range(100)}
    assert len(ids) == 100
    assert all(slug(name) == name and name.startswith("w-") for name in ids)


async def test_a_card_is_there_while_its_owner_is(bus, other, collect):
    seen = collect()
    async with watch_cards(other, "frontend", FrontendCard, lambda name, found: seen((name, found))):
        async with keep_card(bus, "frontend.f", card("f")):
            assert await seen.wait(1) == [("f", card("f"))]
        assert (await seen.wait(2))[1] == ("f", None)


async def test_a_watcher_that_comes_later_gets_the_cards_that_are_there(bus, other, collect):
    seen = collect()
    async with (
        keep_card(bus, "frontend.f", card("f")),
        keep_card(bus, "model.m", card("m")),
        watch_cards(other, "frontend", FrontendCard, lambda name, found: seen((name, found))),
    ):
        assert seen.items == [("f", card("f"))]


async def test_a_card_that_nobody_refreshes_expires(bus, collect, undisturbed):
    bucket = bus.bucket("REG")

    async def keep_one() -> None:
        seen = collect()
        async with (
            watch_cards(bus, "frontend", FrontendCard, lambda name, found: seen((name, found is not None))),
            keep_card(bus, "frontend.kept", card("kept"), ttl_s=1),
        ):
            for count in (1, 2):
                await bucket.put("frontend.dead", encode(card("dead")), ttl_s=1)
                await seen.until(lambda items: items.count(("dead", False)) >= count)  # noqa: B023
            assert ("kept", False) not in seen.items

    await undisturbed(keep_one, 0.2)


async def test_a_shared_card_outlives_one_of_its_keepers(bus, other):
    async with keep_shared_card(bus, "model.m", card("m")):
        async with keep_shared_card(other, "model.m", card("m")):
            pass
        assert await bus.bucket("REG").get("model.m") is not None


async def test_malformed_cards_are_counted_and_skipped(bus, collect):
    seen = collect()
    before = MALFORMED_MESSAGES.labels(family="registry")._value.get()
    bucket = bus.bucket("REG")
    for number, value in enumerate((b"", b"\xc1", b"{}", encode({"type": "worker_card"}), b"\x93" * 100)):
        await bucket.put(f"frontend.bad{number}", value)
    async with watch_cards(bus, "frontend", FrontendCard, lambda name, found: seen((name, found))):
        await bucket.put("frontend.good", encode(card("good")))
        assert await seen.wait(1) == [("good", card("good"))]
    assert MALFORMED_MESSAGES.labels(family="registry")._value.get() == before + 5


async def test_typed_handlers_get_messages_and_never_garbage(bus, namespace, collect):
    got = collect()
    load = WorkerLoad(
        worker="w", model="m", running=1, waiting=0, free_blocks=3, num_blocks=4, prefill_tokens=0, step_s=0.1, at=1.0
    )
    before = MALFORMED_MESSAGES.labels(family="load")._value.get()
    subscribe_typed(
        bus, f"{namespace}.load.v1.>", WorkerLoad, lambda message, incoming: got((message, incoming.subject))
    )
    for payload in (b"", b"\xff" * 10, b"\xdc\xff\xff", encode(card("f")), b"\x91" * 100_000, encode(load)):
        bus.publish(f"{namespace}.load.v1.m.w", payload)
    assert await got.wait(1) == [(load, f"{namespace}.load.v1.m.w")]
    assert MALFORMED_MESSAGES.labels(family="load")._value.get() == before + 5
