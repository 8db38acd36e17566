"""`busway cache` against a real Redis, object store and broker: what it prints, removes, keeps and tells."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import msgspec
import pytest

from bus.codec import codec, encode
from bus.config import BusConfig
from bus.connection import open_bus
from bus.messages.base import pack_u64
from bus.messages.fleet import TierRate, WorkerLoad
from bus.messages.kv import BlocksStored, KvEvent, TierBatch
from bus.subjects import Subjects
from components.cli.entry import EXIT_FAILED, EXIT_USAGE
from offload.redis import RedisStore
from offload.s3 import ObjectStore

from .conftest import blobs, make_frames

ROOT = Path(__file__).parents[4]


@pytest.fixture
def busway(nats_url, namespace, tmp_path):
    """Run a command in a process of its own; return its exit code and what it printed."""

    def run(*words):
        common = [f"bus.url={nats_url}", f"namespace={namespace}", f"state_dir={tmp_path}/none"]
        settings = [word for setting in common for word in ("--set", setting)]
        command = [sys.executable, "-m", "components.cli", *words, *settings]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def put(redis_server):
    """Put blocks of two tenants into Redis; return their frames and the setting that leads there."""

    async def fill():
        store = RedisStore(redis_server.tcp_url, timeout_s=20.0)
        await store.put(blobs(acme), 3600.0)
        await store.put(blobs(other), 7200.0)
        await store.aclose()

    acme, other = make_frames(3, salt="acme"), make_frames(5, salt="other", first=50)
    anyio.run(fill)
    return acme, other, f"offload.redis.url={redis_server.tcp_url}"


def tell_in_the_end(busway, pattern, *words):
    """Return what a command prints, as soon as it has heard what others say: it listens for a second."""
    for _ in range(10):
        text = busway(*words)[1]
        if re.search(pattern, text):
            return text
    pytest.fail(f"{pattern} is not in {text}")


def test_blocks_are_listed_pinned_and_dropped(busway, put):
    acme, other, setting = put
    space = acme[0].key.space.hex()
    code, text = busway("cache", "ls", "--set", setting)
    assert code == 0
    assert "8 blocks" in text
    assert f"{space}          3 blocks" in text
    assert busway("cache", "pin", "--space", space, "--for", "7d", "--set", setting)[1].startswith("redis: 3 blocks")
    assert "the last until 7.0 d" in busway("cache", "ls", "--set", setting)[1]
    one = f"{other[0].key.block_hash:016x}"
    assert "1 blocks dropped" in busway("cache", "drop", "--block", one, "--set", setting)[1]
    assert "4 blocks dropped" in busway("cache", "drop", "--space", other[0].key.space.hex(), "--set", setting)[1]
    assert "3 blocks" in busway("cache", "ls", "--set", setting)[1]
    assert "3 blocks dropped" in busway("cache", "drop", "--all", "--set", setting)[1]
    assert "0 blocks" in busway("cache", "ls", "--set", setting)[1]


def test_what_is_over_its_quota_is_collected(busway, put):
    acme, _, setting = put
    size = len(acme[0].view)
    bounds = ("--set", setting, "--set", f"offload.redis.max_salt_bytes={4 * size}")
    assert "1 blocks removed" in busway("cache", "gc", *bounds)[1]
    assert "2 blocks removed" in busway("cache", "gc", *bounds, "--set", f"offload.redis.max_bytes={5 * size}")[1]
    assert "4 blocks" in busway("cache", "ls", "--set", setting)[1], "those that expire first went first"


def test_old_objects_are_collected_and_pinned_ones_are_not(busway, moto_url):
    async def fill():
        store = ObjectStore(moto_url, keep_s=0.001, timeout_s=20.0)
        frames = make_frames(4)
        assert all(await store.put(blobs(frames), 0.001))
        await store.keep([frame.key for frame in frames[:1]], 3600.0)

    anyio.run(fill)
    settings = ("--set", f"offload.s3.url={moto_url}", "--set", "offload.s3.keep_s=0.001")
    assert "3 blocks removed" in busway("cache", "gc", *settings)[1]
    assert "1 blocks" in busway("cache", "ls", *settings)[1]


def test_the_fleet_hears_what_was_dropped(busway, put, nats_url, namespace):
    _, other, setting = put
    heard: list[TierBatch] = []

    async def tell():
        async with open_bus(BusConfig(url=nats_url), Subjects(namespace), name="w-1") as bus:
            await bus.ensure()
            chain = pack_u64([frame.key.block_hash for frame in other])
            events = [msgspec.Raw(encode(BlocksStored(0, chain, "remote")))]
            batch = TierBatch("redis-1", "w-1", events, other[0].key.space, 7, 1.0)
            await bus.append(bus.subjects.tier("m", "redis-1"), encode(batch))

    async def hear():
        async with open_bus(BusConfig(url=nats_url), Subjects(namespace), name="w-2") as bus:
            await bus.replay(
                "KV",
                bus.subjects.tier("m", "*"),
                lambda message: heard.append(codec(TierBatch).decode(message.payload)),
            )

    anyio.run(tell)
    known = rf"{other[0].key.space.hex()} +5 blocks .* until 1(20|19)\.\d m  m\n"
    text = tell_in_the_end(busway, known, "cache", "ls", "--set", setting)
    assert re.search(r" +3 blocks .* until (60|59)\.\d m\n", text), "the model of the others is not known"
    busway("cache", "drop", "--all", "--set", setting)
    anyio.run(hear)
    events = [msgspec.msgpack.decode(raw, type=KvEvent) for batch in heard[1:] for raw in batch.events]
    assert [batch.worker for batch in heard] == ["w-1", "cache"]
    assert all(pack_u64([frame.key.block_hash]) in b"".join(e.block_hashes for e in events) for frame in other)


def test_rates_are_those_that_workers_report(busway, nats_url, namespace):
    assert "no worker runs" in busway("cache", "stats")[1]

    def report():
        anyio.run(beat)

    async def beat():
        load = WorkerLoad(
            worker="w-1",
            model="m",
            running=0,
            waiting=0,
            free_blocks=9,
            num_blocks=9,
            prefill_tokens=0,
            step_s=0.0,
            at=0.0,
            tiers=[TierRate("remote", "redis-1", 0.002, 3e-6)],
        )
        async with open_bus(BusConfig(url=nats_url), Subjects(namespace), name="w-1") as bus:
            while not is_over.is_set():
                bus.publish(bus.subjects.load("m", "w-1"), encode(load))
                await anyio.sleep(0.05)

    is_over = threading.Event()
    thread = threading.Thread(target=report)
    thread.start()
    try:
        text = tell_in_the_end(busway, "redis-1", "cache", "stats")
    finally:
        is_over.set()
        thread.join()
    assert "remote redis-1" in text
    assert "2.00 ms and     3.00 us a token" in text


def test_stores_that_fail_are_told_with_a_way_to_look(busway, put, s3_stub, redis_server, monkeypatch):
    _, _, setting = put
    redis = ("--set", setting)
    missing = ("--set", "offload.s3.url=s3://missing/x")
    assert f"ok    redis at {redis_server.tcp_url} answers" in busway("doctor", *redis)[1]
    code, text = busway("cache", "ls", *missing)
    assert code == EXIT_FAILED
    assert "s3://missing/x: there is no such bucket (NoSuchBucket)\n  try: aws s3 ls s3://missing/x/" in text
    assert "there is no such bucket" in busway("doctor", *missing)[1]
    redis_server.kill()
    code, text = busway("cache", "drop", "--all", *redis)
    assert code == EXIT_FAILED
    assert f"Connection refused\n  try: redis-cli -h 127.0.0.1 -p {redis_server.port} ping" in text
    assert "mend: redis-cli" in busway("doctor", *redis)[1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ls"], "no shared store is configured"),
        (["drop"], "takes one of --space"),
        (["ls", "--all"], "takes no of --space"),
        (["pin", "--all"], "needs --for"),
        (["pin", "--all", "--for", "soon"], "is no time"),
        (["drop", "--space", "../x"], "is no space"),
        (["drop", "--block", "zz"], "no block hash"),
        (["ls", "--set", "offload.redis.url=redis://:secret@h:x"], "no address"),
        (["ls", "--set", "offload.s3.url=file:///etc"], "s3://bucket"),
    ],
)
def test_mistakes_are_told(busway, words, complaint):
    code, text = busway("cache", *words)
    assert code == EXIT_USAGE
    assert complaint in text
    assert "secret" not in text
