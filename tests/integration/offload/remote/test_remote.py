"""What one worker stored every other one can load, and the fleet knows; whatever fails is a miss."""

import time
from random import Random

import anyio
import msgspec
import pytest

from bus.codec import encode
from bus.messages.base import pack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, TierBatch
from bus.testing import MemoryBroker
from kv_events.follower import follow
from kv_events.index import PrefixIndex
from offload.key import is_sound
from offload.quota import Quota
from offload.redis import RedisStore
from offload.remote import KEEP_MARGIN, RemoteTier
from offload.s3 import ObjectStore
from offload.tier import ORDINARY, Presence, Retention

from .conftest import FINGERPRINT, empty, make_frames

pytestmark = pytest.mark.anyio

HIT, MISS = Presence.HIT, Presence.MISS


class Fleet:
    """Workers' tiers on one bus."""

    def __init__(self, broker, tasks, make_store):
        self._broker = broker
        self._tasks = tasks
        self._make_store = make_store

    async def add(self, worker, *, fingerprint=FINGERPRINT, quota=None, store=None, wall=time.time):
        """Return the tier of one more worker, which runs until the test ends or its scope is cancelled."""
        ready, scope, made = anyio.Event(), anyio.CancelScope(), []

        async def run():
            with scope:
                async with self._broker.connect(worker) as bus:
                    await bus.ensure()
                    tier = RemoteTier(
                        store or self._make_store(),
                        bus,
                        model="m",
                        worker=worker,
                        fingerprint=fingerprint,
                        block_bytes=len(make_frames(1)[0].view),
                        quota=quota or Quota(0, 0, 60.0),
                        keep_s=60.0,
                        wall=wall,
                    )
                    made.append(tier)
                    ready.set()
                    await tier.run()

        self._tasks.start_soon(run)
        await ready.wait()
        made[0].scope = scope
        return made[0]


@pytest.fixture
async def fleet(redis_server):
    async with anyio.create_task_group() as tasks:
        yield Fleet(MemoryBroker(), tasks, lambda: RedisStore(redis_server.unix_url, timeout_s=60.0))
        tasks.cancel_scope.cancel()


def keys(frames):
    return [frame.key for frame in frames]


def hashes(frames):
    return [frame.key.block_hash for frame in frames]


def told(fleet, tier, *events):
    batch = TierBatch(tier.owner, "w-other", [msgspec.Raw(encode(event)) for event in events])
    return fleet._broker.subjects.tier("m", tier.owner), encode(batch)


async def test_what_one_stored_all_can_load_and_routers_know(fleet, eventually):
    first, second = await fleet.add("w-1"), await fleet.add("w-2")
    frames, index = make_frames(5), PrefixIndex()
    assert first.owner == second.owner
    async with fleet._broker.connect("r") as bus, follow(bus, "m", index):
        assert second.lookup(keys(frames)) == [MISS] * 5
        assert await first.store(frames, ORDINARY) == [True] * 5
        await eventually(lambda: second.lookup(keys(frames)) == [HIT] * 5)
        await eventually(lambda: index.match_shared(hashes(frames)) == {first.owner: [(0, 5)]})
        wanted = empty(frames)
        assert await second.load(wanted) == [True] * 5
        assert all(is_sound(frame.view, frame.key) for frame in wanted)
        first.scope.cancel()
        third = await fleet.add("w-3")
        await eventually(lambda: third.lookup(keys(frames)) == [HIT] * 5)
        assert index.match_shared(hashes(frames)), "the blocks outlive the worker that stored them"
        await second.remove(keys(frames)[3:4])
        await eventually(lambda: third.lookup(keys(frames)) == [HIT, HIT, HIT, MISS, HIT])
        await eventually(lambda: index.match_shared(hashes(frames)) == {first.owner: [(0, 3), (4, 5)]})


async def test_blocks_that_left_the_store_are_missed_once_by_all(fleet, eventually):
    first, second = await fleet.add("w-1"), await fleet.add("w-2")
    frames = make_frames(3)
    await first.store(frames, ORDINARY)
    await eventually(lambda: second.lookup(keys(frames)) == [HIT] * 3)
    await first._store.delete(keys(frames)[1:2])
    assert await second.load(empty(frames)) == [True, False, True]
    await eventually(lambda: first.lookup(keys(frames)) == [HIT, MISS, HIT])


async def test_a_fleet_that_starts_anew_finds_what_is_in_the_store(fleet, redis_server, eventually):
    first = await fleet.add("w-1")
    plain, salted = make_frames(4), make_frames(4, salt="acme", first=100)
    await first.store(plain, ORDINARY)
    await first.store(salted, ORDINARY)
    first.scope.cancel()
    fresh = Fleet(MemoryBroker(), fleet._tasks, fleet._make_store)
    second = await fresh.add("w-2")
    await eventually(lambda: second.lookup(keys(plain)) == [HIT] * 4)
    assert second.lookup(keys(salted)) == [MISS] * 4, "what nobody lists is asked for in the background"
    await eventually(lambda: second.lookup(keys(salted)) == [HIT] * 4)


async def test_bytes_of_another_layout_and_of_another_tenant_do_not_exist(fleet):
    first = await fleet.add("w-1")
    other = await fleet.add("w-2", fingerprint="test-model/bfloat16/16")
    frames, salted = make_frames(3), make_frames(3, salt="acme")
    await first.store(frames, ORDINARY)
    assert first.owner != other.owner
    assert other.lookup(keys(frames)) == [MISS] * 3
    assert hashes(frames) == hashes(salted)
    assert await first.load(empty(salted)) == [False] * 3, "an equal hash under another salt has another name"


async def test_a_killed_redis_is_a_miss_and_serves_again_when_it_is_back(fleet, redis_server, eventually):
    tier = await fleet.add("w-1")
    frames = make_frames(3)
    await tier.store(frames, ORDINARY)
    redis_server.kill()
    with anyio.fail_after(30):
        assert await tier.load(empty(frames)) == [False] * 3
        assert await tier.store(make_frames(3, first=9), ORDINARY) == [False] * 3
        await tier.remove(keys(frames)[:1])
    assert tier.lookup(keys(frames)) == [MISS, HIT, HIT], "a failure says nothing about what is there"
    redis_server.start()
    assert await tier.load(empty(frames)) == [False] * 3
    assert tier.lookup(keys(frames)) == [MISS] * 3
    assert await tier.store(frames, ORDINARY) == [True] * 3
    assert await tier.load(empty(frames)) == [True] * 3


async def test_quotas_hold_for_the_fleet_and_for_each_salt(fleet, eventually):
    size = len(make_frames(1)[0].view)
    first = await fleet.add("w-1", quota=Quota(10 * size, 4 * size, 60.0))
    second = await fleet.add("w-2", quota=Quota(10 * size, 4 * size, 60.0))
    assert await first.store(make_frames(3), ORDINARY) == [True] * 3
    space = make_frames(1)[0].key.space
    await eventually(lambda: second._quota.room(space, time.time()) == size)
    assert await second.store(make_frames(6), ORDINARY) == [True] * 4 + [False] * 2, "what is there counts once"
    for number in range(3):
        await second.store(make_frames(3, salt=f"tenant-{number}", first=100 * (number + 1)), ORDINARY)
    await eventually(lambda: first._quota.room(b"any", time.time()) == 0)
    assert await first.store(make_frames(1, salt="late", first=900), ORDINARY) == [False]


async def test_stores_side_by_side_keep_the_quota_and_store_a_block_once(fleet):
    size = len(make_frames(1)[0].view)
    tier = await fleet.add("w-1", quota=Quota(7 * size, 0, 60.0))
    done = []

    async def store(frames):
        done.append(await tier.store(frames, ORDINARY))

    async with anyio.create_task_group() as tasks:
        for first in (1, 1, 50):
            tasks.start_soon(store, make_frames(4, first=first))
    assert sum(sum(each) for each in done) == 7
    assert tier._quota.room(b"", time.time()) == 0


async def test_a_worker_that_comes_later_counts_what_others_stored_and_when(fleet, eventually):
    size, now = len(make_frames(1)[0].view), time.time()
    first = await fleet.add("w-1", quota=Quota(10 * size, 0, 60.0), wall=lambda: now)
    await first.store(make_frames(4), ORDINARY)
    now += 40.0
    await first.store(make_frames(3, first=50), ORDINARY)
    second = await fleet.add("w-2", quota=Quota(10 * size, 0, 60.0), wall=lambda: now)
    await eventually(lambda: second._quota.room(b"", now) == 3 * size)
    assert second._quota.room(b"", now + 30.0) == 7 * size


async def test_pins_reach_the_store(fleet):
    tier, other = await fleet.add("w-1"), await fleet.add("w-2")
    frames, pin = make_frames(4), Retention(0, time.time() + 5000)
    await tier.store(frames[:2], ORDINARY)
    assert await tier.store(frames[2:], pin) == [True] * 2
    await other.retain(keys(frames[:2]), pin)
    async for part in tier._store.listing():
        assert all(each.expires_at - time.time() > 4900 for each in part)


async def test_a_pin_counts_from_when_it_is_asked_for_and_is_not_made_with_every_turn(fleet, redis_server):
    now = time.time()
    tier = await fleet.add("w-1", wall=lambda: now)
    frames = make_frames(2)
    await tier.store(frames, ORDINARY)
    now += 30.0
    await tier.retain(keys(frames), Retention(0, now + 20.0))
    assert await lifetimes(tier) == pytest.approx([60.0] * 2, abs=2.4), "it stays for longer anyway"
    await tier.retain(keys(frames), Retention(0, now + 58.0))
    assert await lifetimes(tier) == pytest.approx([58.0 * KEEP_MARGIN] * 2, abs=2.4)
    redis_server.kill()
    await tier.retain(keys(frames), Retention(0, now + 62.0))
    assert tier._failed_at is None, "nobody was asked"
    await tier.retain(keys(frames), Retention(0, now + 80.0))
    assert tier._failed_at is not None


async def lifetimes(tier):
    return [each.expires_at - time.time() async for part in tier._store.listing() for each in part]


async def test_pins_take_of_the_quota_by_their_time(fleet, eventually):
    size = len(make_frames(1)[0].view)
    tier, other = [await fleet.add(name, quota=Quota(10 * size, 0, 60.0)) for name in ("w-1", "w-2")]
    frames, now = make_frames(4), time.time()
    await tier.store(frames, ORDINARY)
    for _ in range(3):
        await tier.retain(keys(frames[:2]), Retention(0, now + 120.0 / KEEP_MARGIN))
    await eventually(lambda: other._quota.room(b"", now) == pytest.approx(4 * size, rel=0.1))
    await tier.retain(keys(frames), Retention(0, now + 240.0 / KEEP_MARGIN))
    left = sorted(await lifetimes(tier))
    assert left == pytest.approx([60.0, 60.0, 120.0, 240.0], rel=0.05), "as much as there was room for"


async def test_what_others_say_may_be_wrong_or_no_message(fleet, eventually):
    tier = await fleet.add("w-1")
    frames = make_frames(2)
    async with fleet._broker.connect("evil") as bus:
        subject, lie = told(fleet, tier, BlocksStored(0, pack_u64(hashes(frames)), "remote"))
        for payload in (b"", b"\xc1", b"\xff" * 100, encode(TierBatch("s3-other", "w", [])), lie):
            bus.publish(subject, payload)
        bus.publish(*told(fleet, tier, BlocksStored(0, b"odd", "remote")))
        await eventually(lambda: tier.lookup(keys(frames)) == [HIT] * 2)
        assert await tier.load(empty(frames)) == [False] * 2
        assert tier.lookup(keys(frames)) == [MISS] * 2
        cleared = make_frames(2, first=50)
        await tier.store(cleared, ORDINARY)
        await tier._store.delete(keys(cleared))
        assert tier.lookup(keys(cleared)) == [HIT] * 2
        bus.publish(*told(fleet, tier, BlocksCleared("remote")))
        await eventually(lambda: tier.lookup(keys(cleared)) == [MISS] * 2)


async def test_whatever_bytes_are_told_the_tier_goes_on(fleet, eventually):
    tier = await fleet.add("w-1", quota=Quota(2**30, 0, 60.0))
    frames, rng = make_frames(3), Random(11)
    good = [BlocksStored(0, pack_u64(hashes(frames)), "remote"), BlocksRemoved(pack_u64([1, 1, 2]), "remote")]
    subject, batch = told(fleet, tier, *good)
    async with fleet._broker.connect("evil") as bus:
        for _ in range(1000):
            payload = bytearray(batch)
            for _ in range(rng.randint(1, 4)):
                payload[rng.randrange(len(payload))] = rng.randrange(256)
            bus.publish(subject, bytes(payload[: rng.randint(1, len(payload))] if rng.random() < 0.2 else payload))
        now = time.time()
        for space, num_bytes, at in (
            (b"x" * 16, 2**63, now),
            (b"x" * 16, -1, now),
            (b"x" * 100_000, 1, now),
            (b"x" * 16, 1, float("nan")),
            (b"x" * 16, 1, float("inf")),
            (b"x" * 16, 1, -1e300),
        ):
            bus.publish(subject, encode(TierBatch(tier.owner, "w-other", [], space, num_bytes, at)))
        bus.publish(subject, encode(TierBatch(tier.owner, "w-other", [], b"last" * 4, 7, now)))
        await eventually(lambda: tier._quota.used(time.time()).get(b"last" * 4) == 7)
    used = tier._quota.used(time.time())
    assert b"x" * 16 not in used
    assert all(len(space) in (0, 16) for space in used)
    assert await tier.load(empty(frames)) == [False] * 3, "some of it was a lie, and is none any more"
    assert all(await tier.store(frames, ORDINARY))
    wanted = empty(frames)
    assert await tier.load(wanted) == [True] * 3
    assert all(is_sound(frame.view, frame.key) for frame in wanted)


async def test_an_object_store_is_shared_in_the_same_way(s3_stub, eventually):
    async with anyio.create_task_group() as tasks:
        fleet = Fleet(MemoryBroker(), tasks, lambda: ObjectStore("s3://kv-blocks", keep_s=60.0, timeout_s=20.0))
        first, second = await fleet.add("w-1"), await fleet.add("w-2")
        frames = make_frames(5)
        assert await first.store(frames, ORDINARY) == [True] * 5
        await eventually(lambda: second.lookup(keys(frames)) == [HIT] * 5)
        wanted = empty(frames)
        assert await second.load(wanted) == [True] * 5
        assert all(is_sound(frame.view, frame.key) for frame in wanted)
        s3_stub.set_fault('{"status": 503}')
        hasty = await fleet.add("w-3", store=ObjectStore("s3://kv-blocks", keep_s=60.0, timeout_s=1.0))
        await eventually(lambda: hasty.lookup(keys(frames)) == [HIT] * 5)
        assert not any(await hasty.load(wanted))
        assert hasty.lookup(keys(frames)) == [HIT] * 5
        assert second.lookup(keys(frames)) == [HIT] * 5
        tasks.cancel_scope.cancel()
