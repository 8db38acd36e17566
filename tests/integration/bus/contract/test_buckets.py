"""Buckets and blobs: the same on a server and in memory."""

import hashlib

import pytest

from bus.errors import BusUnavailable, Conflict, Malformed

pytestmark = pytest.mark.anyio


@pytest.fixture
def bucket(bus):
    return bus.bucket("REG")


def pairs(entries):
    return [(entry.key, entry.value) for entry in entries]


async def test_a_value_is_found_until_it_is_deleted(bucket):
    assert await bucket.get("worker.w") is None
    first = await bucket.put("worker.w", b"one")
    second = await bucket.put("worker.w", b"two")
    assert second > first
    entry = await bucket.get("worker.w")
    assert (entry.key, entry.value, entry.revision) == ("worker.w", b"two", second)
    await bucket.delete("worker.w")
    await bucket.delete("worker.w")
    await bucket.delete("worker.never")
    assert await bucket.get("worker.w") is None


async def test_update_needs_the_revision_that_was_read(bucket):
    created = await bucket.update("lease", b"a", revision=0)
    with pytest.raises(Conflict):
        await bucket.update("lease", b"b", revision=0)
    changed = await bucket.update("lease", b"b", revision=created)
    with pytest.raises(Conflict):
        await bucket.update("lease", b"c", revision=created)
    await bucket.delete("lease")
    with pytest.raises(Conflict):
        await bucket.update("lease", b"c", revision=changed)
    await bucket.update("lease", b"c", revision=0)
    assert (await bucket.get("lease")).value == b"c"


async def test_entries_are_those_that_live(bucket):
    for key in ("a", "b", "c"):
        await bucket.put(key, key.encode())
    await bucket.put("b", b"again")
    await bucket.delete("a")
    assert sorted(pairs(await bucket.entries())) == [("b", b"again"), ("c", b"c")]


async def test_a_watcher_hears_what_is_there_and_what_comes(bucket, other, collect):
    await bucket.put("a", b"1")
    await bucket.put("b", b"2")
    await bucket.delete("b")
    seen = collect()
    async with bucket.watch(seen):
        assert pairs(seen.items) == [("a", b"1")]
        elsewhere = other.bucket("REG")
        await elsewhere.put("c", b"3")
        await elsewhere.delete("unknown")
        await elsewhere.delete("a")
        # Only the latest state is promised: a value that follows at once would hide the deletion.
        await seen.wait(3)
        await elsewhere.put("a", b"4")
        await seen.wait(4)
        assert pairs(seen.items) == [("a", b"1"), ("c", b"3"), ("a", None), ("a", b"4")]
    await bucket.put("d", b"5")
    assert len(seen.items) == 4


async def test_an_empty_bucket_can_be_watched(bucket, collect):
    seen = collect()
    async with bucket.watch(seen):
        assert seen.items == []
        await bucket.put("a", b"")
        assert pairs(await seen.wait(1)) == [("a", b"")]


async def test_a_watcher_gets_more_entries_than_one_request_brings(bucket, collect):
    for number in range(600):
        await bucket.put(f"worker.{number}", b"%d" % number)
    seen = collect()
    async with bucket.watch(seen):
        assert len(seen.items) == 600


async def test_a_watcher_that_raises_hears_the_next_change(bucket, collect):
    seen = collect()

    def handle(entry):
        seen(entry)
        if entry.key == "bad":
            raise ValueError("broken handler")

    async with bucket.watch(handle):
        await bucket.put("bad", b"")
        await bucket.put("good", b"")
        assert [entry.key for entry in await seen.wait(2)] == ["bad", "good"]


async def test_an_entry_with_a_ttl_expires_unless_it_is_refreshed(bucket, collect):
    seen = collect()
    async with bucket.watch(seen):
        await bucket.put("short", b"", ttl_s=1)
        await bucket.put("kept", b"", ttl_s=1)
        await bucket.put("kept", b"", ttl_s=30)
        await seen.until(lambda entries: ("short", None) in pairs(entries))
    assert pairs(await bucket.entries()) == [("kept", b"")]


@pytest.mark.parametrize("key", ["", "a b", "a..b", ".a", "a.", "a*", "a>", "ä", "a\n", "x" * 600])
async def test_hostile_keys_are_refused(bucket, key):
    with pytest.raises(Malformed):
        await bucket.put(key, b"")
    with pytest.raises(Malformed):
        await bucket.get(key)


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 700_001])
async def test_a_blob_comes_back_as_it_was(bus, other, size):
    data = bytes(number * 31 % 251 for number in range(size))
    digest = await bus.put_blob(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert await bus.put_blob(data) == digest
    assert await other.get_blob(digest) == data


async def test_an_unknown_blob_is_unavailable(bus):
    with pytest.raises(BusUnavailable):
        await bus.get_blob("0" * 64)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "0" * 63, "G" * 64, "0" * 64 + "\n"])
async def test_a_digest_is_checked(bus, digest):
    with pytest.raises(Malformed):
        await bus.get_blob(digest)
