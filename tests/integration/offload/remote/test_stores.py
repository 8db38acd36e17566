"""Stores keep the same contract, on real servers; what goes wrong there ends in time and spoils nothing."""

import os
import signal
import time
from contextlib import suppress

import anyio
import pytest

from bus.errors import BadConfig
from offload.key import BlockKey, is_sound, space_of
from offload.redis import RedisStore
from offload.s3 import ObjectStore
from offload.store import Blob, Got, TierUnavailable

from .conftest import FINGERPRINT, blobs, empty, make_frames

pytestmark = pytest.mark.anyio

ALL, ABSENT = Got.ALL, Got.ABSENT


@pytest.fixture(params=["redis-unix", "redis-tcp", "s3-moto", "s3-stub"])
async def store(request):
    kind = request.param
    if kind.startswith("redis"):
        server = request.getfixturevalue("redis_server")
        made = RedisStore(server.unix_url if kind == "redis-unix" else server.tcp_url, timeout_s=20.0)
    elif kind == "s3-moto":
        made = ObjectStore(request.getfixturevalue("moto_url"), keep_s=60.0, timeout_s=20.0)
    else:
        request.getfixturevalue("s3_stub")
        made = ObjectStore("s3://kv-blocks", keep_s=60.0, timeout_s=20.0)
    yield made
    await made.aclose()


async def listed(store, space=None):
    return {each.key: each async for part in store.listing(space) for each in part}


async def test_the_contract(store):
    stored, salted = make_frames(20), make_frames(3, salt="acme")
    assert await store.put(blobs(stored), 60.0) == [True] * 20
    assert await store.put(blobs(salted), 60.0) == [True] * 3
    wanted, absent = empty(stored), BlockKey(stored[0].key.space, 7)
    wanted_blobs = [*blobs(wanted[:9]), Blob(absent, memoryview(bytearray(1064))), *blobs(wanted[9:])]
    assert await store.get(wanted_blobs) == [ALL] * 9 + [ABSENT] + [ALL] * 11
    assert [bytes(frame.view) for frame in wanted] == [bytes(frame.view) for frame in stored]
    assert all(is_sound(frame.view, frame.key) for frame in wanted)
    short = Blob(stored[1].key, memoryview(bytearray(2000)))
    assert await store.get([short, *blobs(wanted)]) == [ABSENT] + [ALL] * 20, "of another length"
    assert await store.has([absent, stored[3].key]) == [False, True]
    assert salted[0].key.block_hash == stored[0].key.block_hash
    assert set(await listed(store, salted[0].key.space)) == {frame.key for frame in salted}, "tenants lie apart"
    assert await store.delete([frame.key for frame in stored]) >= 20
    assert set(await listed(store)) == {frame.key for frame in salted}
    assert await store.get([]) == await store.put([], 1.0) == []


async def test_blocks_stay_for_their_time_and_pinned_ones_longer(store):
    plain, pinned = make_frames(2), make_frames(2, first=10)
    now = time.time()
    assert all(await store.put(blobs(plain), 60.0))
    assert all(await store.put(blobs(pinned), 600.0))
    assert await store.keep([plain[0].key, BlockKey(plain[0].key.space, 7)], 3000.0) == [True, False]
    await store.keep([pinned[0].key], 100.0)
    left = {key: each.expires_at - now for key, each in (await listed(store)).items()}
    assert 55 < left[plain[1].key] < 70
    assert 595 < left[pinned[0].key] < 610, "a shorter pin does not shorten"
    assert 595 < left[pinned[1].key] < 610
    assert 2995 < left[plain[0].key] < 3010


async def test_redis_is_killed_and_comes_back(redis_server):
    store = RedisStore(redis_server.unix_url, timeout_s=60.0)
    frames = make_frames(3)
    assert all(await store.put(blobs(frames), 60.0))
    redis_server.kill()
    with anyio.fail_after(30), pytest.raises(TierUnavailable):
        await store.get(blobs(empty(frames)))
    redis_server.start()
    assert await store.get(blobs(empty(frames))) == [ABSENT] * 3
    assert all(await store.put(blobs(frames), 60.0))
    await store.aclose()


async def test_a_redis_that_hangs_is_left_in_time_and_touches_nothing_afterwards(redis_server):
    store, patient = [RedisStore(redis_server.tcp_url, timeout_s=limit) for limit in (0.3, 60.0)]
    frames = make_frames(600, payload_bytes=40_000)
    assert all(await patient.put(blobs(frames[:40]), 60.0))
    await _until_it_answers(store)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        for call in (lambda: store.get(blobs(empty(frames))), lambda: store.put(blobs(frames), 60.0)):
            with anyio.fail_after(30), pytest.raises(TierUnavailable):
                await call()
        wanted = empty(frames[:40])
        with anyio.move_on_after(0.05):
            await patient.get(blobs(wanted))
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    before = [bytes(frame.view) for frame in wanted]
    await _until_it_answers(store)
    for each in (store, patient):
        assert await _answer_of(each, frames[:40]) == [ALL] * 40, "a new connection, in step"
        await each.aclose()
    assert [bytes(frame.view) for frame in wanted] == before


async def test_a_full_redis_says_no(redis_server):
    redis_server.kill()
    redis_server.start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    store = RedisStore(redis_server.unix_url, timeout_s=20.0)
    frames = make_frames(60, payload_bytes=100_000)
    done = await store.put(blobs(frames), 60.0)
    assert done[0]
    assert not done[-1]
    wanted = empty(frames)
    got = await store.get(blobs(wanted))
    assert [each is ALL for each in got] == done
    assert all(is_sound(frame.view, frame.key) for frame, is_there in zip(wanted, done, strict=True) if is_there)
    await store.aclose()


async def test_redis_with_a_password(redis_server):
    redis_server.kill()
    redis_server.start("--requirepass", "se cret")
    good = RedisStore(f"redis://:se%20cret@127.0.0.1:{redis_server.port}/3", timeout_s=20.0)
    assert await good.put(blobs(make_frames(1)), 60.0) == [True]
    assert "cret" not in good.location
    bad = RedisStore(redis_server.unix_url, timeout_s=20.0)
    with pytest.raises(TierUnavailable, match="NOAUTH"):
        await bad.get(blobs(empty(make_frames(1))))
    await good.aclose()
    await bad.aclose()


@pytest.mark.parametrize("fault", ['{"status": 500}', '{"status": 403}', '{"hang": true}', '{"delay_s": 1.0}'])
async def test_an_s3_that_fails_or_hangs_is_left_in_time(s3_stub, fault):
    store, patient = [ObjectStore("s3://kv-blocks", keep_s=60.0, timeout_s=limit) for limit in (0.4, 20.0)]
    frames = make_frames(3)
    assert all(await patient.put(blobs(frames), 60.0))
    s3_stub.set_fault(fault)
    for call in (
        lambda: store.get(blobs(empty(frames))),
        lambda: store.put(blobs(frames), 60.0),
        lambda: listed(store),
    ):
        with anyio.fail_after(30), pytest.raises(TierUnavailable):
            await call()
    s3_stub.set_fault("{}")
    await _until_it_answers(store)
    assert await patient.get(blobs(empty(frames))) == [ALL] * 3


async def _until_it_answers(store):
    """A store with little patience fails as long as this machine is slow."""
    with anyio.fail_after(30):
        while True:
            with suppress(TierUnavailable):
                return await store.has([BlockKey(space_of(FINGERPRINT), 1)])


async def _answer_of(store, frames):
    """What it has of these blocks, as soon as it is in time with saying so."""
    with anyio.fail_after(30):
        while True:
            with suppress(TierUnavailable):
                return await store.get(blobs(empty(frames)))


async def test_truncated_and_corrupt_objects_are_never_taken_for_blocks(s3_stub):
    store = ObjectStore("s3://kv-blocks", keep_s=60.0, timeout_s=20.0)
    frames = make_frames(2)
    assert all(await store.put(blobs(frames), 60.0))
    for fault in ('{"truncate": 1}', '{"truncate": 2000}'):
        s3_stub.set_fault(fault)
        assert await store.get(blobs(empty(frames))) == [ABSENT] * 2
        s3_stub.set_fault("{}")
        assert await store.get(blobs(empty(frames))) == [ALL] * 2
    s3_stub.set_fault('{"corrupt": true}')
    wanted = empty(frames)
    await store.get(blobs(wanted))
    assert not any(is_sound(frame.view, frame.key) for frame in wanted)


async def test_a_bucket_that_is_not_there_is_an_error_and_no_miss(s3_stub):
    store = ObjectStore("s3://missing/x", keep_s=60.0, timeout_s=20.0)
    frames = make_frames(2)
    for call in (lambda: store.get(blobs(empty(frames))), lambda: store.put(blobs(frames), 60.0)):
        with pytest.raises(TierUnavailable, match="NoSuchBucket"):
            await call()


@pytest.mark.parametrize(
    "url", ["file:///etc", "memory:///", "s3://user:secret@b/x", "s3://", "https://x/y", "", "s3:b"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(BadConfig) as raised:
        ObjectStore(url, keep_s=60.0, timeout_s=1.0)
    assert "secret" not in str(raised.value)
