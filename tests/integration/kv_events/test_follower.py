"""A follower's index becomes and stays what the workers hold, whatever gets lost."""

from contextlib import asynccontextmanager

import msgspec
import pytest

from bus.codec import encode
from bus.messages.base import pack_u64
from bus.messages.fleet import WorkerLoad
from bus.messages.kv import BlocksRemoved, BlocksStored, KvBatch, TierBatch
from bus.typed import subscribe_typed
from kv_events.follower import follow
from kv_events.index import PrefixIndex

pytestmark = pytest.mark.anyio


def stored(*hashes):
    return BlocksStored(0, pack_u64(hashes))


@asynccontextmanager
async def following(bus, model, index):
    """Follow, and hand on the workers' reports as a router does."""
    async with follow(bus, model, index) as follower:
        reports = subscribe_typed(bus, bus.subjects.load(model, "*"), WorkerLoad, lambda load, _: follower.hear(load))
        yield follower
        reports.unsubscribe()


async def test_live_events_reach_the_index(stage, bus, index, eventually):
    speaker, _ = await stage.add_worker("w-1")
    async with following(bus, "m", index) as follower:
        await eventually(lambda: follower.is_synced("w-1"))
        speaker.publish(stored(1, 2, 3))
        await eventually(lambda: index.match([1, 2, 9]) == {"w-1": (2, 2, 2, 2)})
        assert follower.is_synced("w-1")
        assert not follower.is_synced("w-2")


async def test_a_new_reader_takes_the_past_from_the_stream_without_asking(stage, bus, index, eventually, collect):
    speakers = [(await stage.add_worker(f"w-{number}"))[0] for number in range(3)]
    async with following(bus, "m", PrefixIndex()) as first:
        await eventually(lambda: all(first.is_synced(speaker.log.worker) for speaker in speakers))
        for speaker in speakers:
            speaker.live(300)
            await speaker.bus.flush()
    asked = collect()
    bus.subscribe(bus.subjects.kvq("*"), asked)
    async with following(bus, "m", index) as follower:
        await eventually(lambda: all(speaker.is_known_to(index) for speaker in speakers))
        await eventually(lambda: all(follower.is_synced(speaker.log.worker) for speaker in speakers))
        await eventually(lambda: not follower.is_replaying)
    assert asked.items == []


async def test_checkpoints_keep_what_the_stream_holds_small(stage, bus, index, eventually, collect):
    speaker, _ = await stage.add_worker("w-1")
    async with following(bus, "m", index) as follower:
        for _ in range(20):
            speaker.live(100)
            await speaker.bus.flush()
        await eventually(lambda: speaker.is_known_to(index) and follower.is_synced("w-1"))
    kept = collect()
    await bus.replay("KV", bus.subjects.kv("m", "w-1"), kept)
    assert 0 < len(kept.items) < 1500
    again = PrefixIndex()
    async with following(bus, "m", again):
        await eventually(lambda: speaker.is_known_to(again))


async def test_lost_messages_are_found_and_repaired(stage, bus, index, eventually):
    speakers = [(await stage.add_worker(f"w-{number}"))[0] for number in range(4)]
    async with following(bus, "m", index) as follower:
        for _ in range(40):
            for speaker in speakers:
                speaker.lossy.loss = 0.05
                speaker.live(5)
            await bus.flush()
        lost = sum(speaker.lossy.num_lost for speaker in speakers)
        assert lost > 10
        await eventually(lambda: all(speaker.is_known_to(index) for speaker in speakers))
        await eventually(lambda: all(follower.is_synced(speaker.log.worker) for speaker in speakers))


async def test_a_wrong_index_is_found_by_its_digest(stage, bus, index, eventually):
    speaker, _ = await stage.add_worker("w-1")
    async with following(bus, "m", index) as follower:
        speaker.publish(stored(1, 2))
        await eventually(lambda: speaker.is_known_to(index) and follower.is_synced("w-1"))
        index.apply("w-1", [stored(77)])
        await eventually(lambda: speaker.is_known_to(index) and follower.is_synced("w-1"))
        assert index.match([77]) == {}


async def test_a_worker_that_leaves_is_forgotten_at_once(stage, bus, index, eventually):
    speaker, scope = await stage.add_worker("w-1")
    async with following(bus, "m", index) as follower:
        await eventually(lambda: follower.is_synced("w-1"))
        speaker.publish(stored(1))
        await eventually(lambda: len(index) == 1)
        scope.cancel()
        await eventually(lambda: index.workers() == [])
        assert not follower.is_synced("w-1")


async def test_a_broker_that_loses_its_memory_costs_nothing_that_lasts(stage, bus, index, eventually):
    speaker, _ = await stage.add_worker("w-1")
    async with following(bus, "m", index) as follower:
        await eventually(lambda: follower.is_synced("w-1"))
        speaker.live(200)
        await eventually(lambda: speaker.is_known_to(index))
        await stage.restart()
        speaker.live(200)
        await eventually(lambda: speaker.is_known_to(index) and follower.is_synced("w-1"))
    fresh = PrefixIndex()
    async with following(bus, "m", fresh):
        await eventually(lambda: speaker.is_known_to(fresh))


async def test_foreign_and_malformed_messages_change_nothing(stage, bus, index, eventually):
    speaker, _ = await stage.add_worker("w-1")
    async with following(bus, "m", index) as follower:
        await eventually(lambda: follower.is_synced("w-1"))
        subject = bus.subjects.kv("m", "w-1")
        forged = KvBatch("w-1", speaker.log.epoch, 0, [])
        for payload in (b"", b"\xc1", b"\x93\x01\x02\x03", encode(forged)[:-1]):
            bus.publish(subject, payload)
        bus.publish(bus.subjects.kv("m", "w-2"), encode(KvBatch("w-1", speaker.log.epoch + 1, 0, [])))
        bus.publish(bus.subjects.kv("m", "w-9"), encode(KvBatch("w-9", 1, 0, [])))
        speaker.publish(stored(5))
        await eventually(lambda: speaker.is_known_to(index) and follower.is_synced("w-1"))
        assert index.workers() == ["w-1"]


async def test_two_models_are_kept_apart(stage, bus, index, eventually):
    speaker, _ = await stage.add_worker("w-1")
    async with following(bus, "other", index) as follower:
        speaker.publish(stored(1))
        await speaker.bus.flush()
        await eventually(lambda: not follower.is_replaying)
        assert index.workers() == []


async def test_errors_of_the_user_come_out_as_they_are(stage, bus, index):
    with pytest.raises(KeyError):
        async with following(bus, "m", index):
            raise KeyError


async def test_shared_tiers_outlive_who_told_of_them(stage, bus, index, eventually):
    def tell(owner, *events, subject="redis-1"):
        batch = TierBatch(owner, "w-gone", [msgspec.Raw(encode(event)) for event in events])
        bus.publish(bus.subjects.tier("m", subject), encode(batch))

    tell("redis-1", BlocksStored(0, pack_u64([1, 2, 3]), "remote"))
    await bus.flush()
    async with following(bus, "m", index):
        await eventually(lambda: index.match_shared([1, 2, 3]) == {"redis-1": [(0, 3)]})
        bus.publish(bus.subjects.tier("m", "redis-1"), b"\xc1 no message")
        tell("redis-2", BlocksRemoved(pack_u64([1, 2]), "remote"))
        tell("redis-1", BlocksRemoved(pack_u64([2]), "remote"), BlocksRemoved(b"odd", "remote"))
        await eventually(lambda: index.match_shared([1, 2, 3]) == {"redis-1": [(0, 1), (2, 3)]})
    assert index.match_shared([1, 2, 3]) == {}
