"""Blocks in one worker's host memory are read by others; whatever the peer does, only what was asked for is used."""

import os
from random import Random

import anyio
import msgspec
import pytest

from bus.codec import codec, encode
from bus.messages.base import pack_u64
from bus.messages.fleet import WorkerCard
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvBatch
from bus.messages.transfer import PeerAnswer, PeerQuery
from bus.registry import keep_card
from bus.testing import MemoryBroker
from components.transfer import open_transfer
from components.worker.peer_tier import MAX_ASKED, PeerTier, arena_memory
from offload.host import HostArena
from offload.key import HEADER_BYTES, BlockKey, is_sound, space_of
from offload.tier import ORDINARY, Presence

pytestmark = pytest.mark.anyio

BLOCK_BYTES = 9000
HIT, MISS = Presence.HIT, Presence.MISS
SPACE = space_of("model")
FINGERPRINT = "model/float32"


def keys_of(*hashes):
    return [BlockKey(SPACE, block) for block in hashes]


def make_card(name):
    return WorkerCard(
        worker=name,
        model="m",
        engine="none",
        roles=["both"],
        slots=1,
        block_size=16,
        num_blocks=16,
        max_model_len=99,
        host="h",
        pid=1,
        version="0",
        started_at=0.0,
    )


class Peer:
    """A worker's host memory and its tier of peers, without an engine."""

    def __init__(self, name, bus, host, tier):
        self.name, self.bus, self.host, self.tier = name, bus, host, tier
        self.num_events = 0

    def keep(self, *hashes):
        """Have blocks in host memory, and tell so."""
        slots, parent = [], 0
        for key in keys_of(*hashes):
            slot = self.host.slots.prepare_store(key, parent, ORDINARY, 0.0)
            view = self.host.frame(slot).view
            view[HEADER_BYTES:] = key.block_hash.to_bytes(8, "little") * (BLOCK_BYTES // 8)
            slots.append(slot)
            parent = key.block_hash
        self.host.slots.complete_store(slots)
        self.tell(BlocksStored(0, pack_u64(hashes), "host"))

    def tell(self, *events):
        batch = KvBatch(self.name, 1, self.num_events, [msgspec.Raw(encode(event)) for event in events])
        self.num_events += len(events)
        self.bus.publish(self.bus.subjects.kv("m", self.name), encode(batch))

    def frames(self, *hashes):
        """Return frames that are to be filled."""
        slots = [self.host.slots.prepare_store(key, 0, ORDINARY, 0.0) for key in keys_of(*hashes)]
        return [self.host.frame(slot) for slot in slots]


@pytest.fixture
async def add_peer(monkeypatch):
    monkeypatch.setattr("components.worker.peer_tier.ANSWER_S", 30.0)
    monkeypatch.setattr("components.worker.peer_tier.LOAD_S", 30.0)
    broker = MemoryBroker()
    async with anyio.create_task_group() as tasks:

        async def add(name, *, fingerprint=FINGERPRINT, lease_s=30.0):
            ready, made = anyio.Event(), []
            scope = anyio.CancelScope()

            async def run():
                host = HostArena(2**20, BLOCK_BYTES)
                memory = arena_memory(host, fingerprint)
                with scope:
                    async with (
                        broker.connect(name) as bus,
                        open_transfer(memory, f"{name}-host", transport="loopback", lease_s=lease_s) as transfer,
                    ):
                        await bus.ensure()
                        tier = PeerTier(bus, host, transfer, model="m", worker=name)
                        made.append(Peer(name, bus, host, tier))
                        async with keep_card(bus, f"worker.{name}", make_card(name)):
                            ready.set()
                            await tier.run()

            tasks.start_soon(run)
            await ready.wait()
            made[0].scope = scope
            return made[0]

        yield add
        tasks.cancel_scope.cancel()


async def test_what_a_peer_has_is_read_from_its_host_memory(add_peer, eventually):
    first, second, third = [await add_peer(f"w-{number}") for number in range(3)]
    await eventually(lambda: third.tier._present == {"w-0", "w-1"})
    first.keep(1, 2, 3)
    second.keep(4, 5)
    await eventually(lambda: third.tier.lookup(keys_of(1, 2, 3, 4, 5, 6)) == [HIT] * 5 + [MISS])
    assert first.tier.lookup(keys_of(1)) == [MISS], "nobody is its own peer"
    wanted = third.frames(1, 2, 3, 4, 5, 6)
    assert await third.tier.load(wanted) == [True] * 5 + [False], "from both at once"
    assert all(is_sound(frame.view, frame.key) for frame in wanted[:5])
    await eventually(lambda: not any(first.host.slots._pins))


async def test_what_a_peer_has_no_more_is_missed_once(add_peer, eventually):
    first, second = await add_peer("w-1"), await add_peer("w-2")
    await eventually(lambda: second.tier._present == {"w-1"})
    first.keep(1, 2, 3)
    await eventually(lambda: second.tier.lookup(keys_of(1, 2, 3)) == [HIT] * 3)
    first.host.slots.remove(keys_of(2))
    assert await second.tier.load(second.frames(1, 2, 3)) == [True, False, False]
    assert second.tier.lookup(keys_of(1, 2, 3)) == [HIT, MISS, HIT]
    first.tell(BlocksRemoved(pack_u64([3]), "host"), BlocksRemoved(pack_u64([1]), "device"))
    await eventually(lambda: second.tier.lookup(keys_of(1, 3)) == [HIT, MISS])
    first.tell(BlocksCleared("host"))
    await eventually(lambda: second.tier.lookup(keys_of(1)) == [MISS])


async def test_a_peer_that_is_gone_is_a_miss(add_peer, eventually):
    first, second = await add_peer("w-1"), await add_peer("w-2")
    await eventually(lambda: second.tier._present == {"w-1"})
    first.keep(1, 2)
    await eventually(lambda: second.tier.lookup(keys_of(1, 2)) == [HIT] * 2)
    second.tier._holders.store("w-gone", [7])
    assert await second.tier.load(second.frames(7)) == [False]
    assert second.tier.lookup(keys_of(7)) == [MISS]
    first.scope.cancel()
    await eventually(lambda: second.tier.lookup(keys_of(1, 2)) == [MISS] * 2)
    third = await add_peer("w-3")
    await eventually(lambda: third.tier._present == {"w-2"})
    await third.bus.replay("KV", third.bus.subjects.kv("m", "*"), third.tier._on_batch)
    assert third.tier.lookup(keys_of(1, 2)) == [MISS] * 2, "the stream remembers what the dead had"


async def test_frames_of_another_layout_are_refused(add_peer, eventually):
    first, second = await add_peer("w-1", fingerprint="model/bfloat16"), await add_peer("w-2")
    await eventually(lambda: second.tier._present == {"w-1"})
    first.keep(1)
    await eventually(lambda: second.tier.lookup(keys_of(1)) == [HIT])
    assert await second.tier.load(second.frames(1)) == [False]


async def test_hostile_questions_and_answers(add_peer, eventually):
    first, second = await add_peer("w-1", lease_s=0.5), await add_peer("w-2")
    await eventually(lambda: second.tier._present == {"w-1"})
    first.keep(1)
    subject = first.bus.subjects.peer("w-1")
    good = PeerQuery(space=SPACE, block_hashes=pack_u64([1]))
    for query in (
        PeerQuery(space=b"short", block_hashes=pack_u64([1])),
        PeerQuery(space=SPACE, block_hashes=b"odd"),
        PeerQuery(space=SPACE, block_hashes=b""),
        PeerQuery(space=SPACE, block_hashes=pack_u64(range(MAX_ASKED + 1))),
    ):
        second.bus.publish(subject, encode(query), reply="nobody")
    second.bus.publish(subject, os.urandom(50), reply="nobody")
    second.bus.publish(subject, encode(good))
    answers = codec(PeerAnswer)
    unknown = PeerQuery(space=space_of("other"), block_hashes=pack_u64([1]))
    assert answers.decode((await second.bus.request(subject, encode(unknown))).payload).offer is None
    assert answers.decode((await second.bus.request(subject, encode(good))).payload).offer is not None
    await whatever_is_offered_nothing_raises(first, second)
    second.bus.subscribe(subject.replace("w-1", "w-liar"), lambda m: second.bus.publish(m.reply, b"\xc1"))
    second.tier._holders.store("w-liar", [9])
    assert await second.tier.load(second.frames(9)) == [False]
    await eventually(lambda: not any(first.host.slots._pins)), "an offer that nobody reads expires"


async def test_whatever_bytes_a_peer_tells_the_others_go_on(add_peer, eventually):
    first, second = await add_peer("w-1"), await add_peer("w-2")
    await eventually(lambda: second.tier._present == {"w-1"})
    events = [BlocksStored(7, pack_u64([9, 9, 8]), "host"), BlocksRemoved(pack_u64([9, 4]), "host")]
    batch = encode(KvBatch("w-1", 1, 0, [msgspec.Raw(encode(event)) for event in events]))
    rng, subject = Random(6), first.bus.subjects.kv("m", "w-1")
    for _ in range(1000):
        payload = bytearray(batch)
        for _ in range(rng.randint(1, 4)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        first.bus.publish(subject, bytes(payload[: rng.randint(1, len(payload))] if rng.random() < 0.2 else payload))
    first.keep(1, 2)
    await eventually(lambda: second.tier.lookup(keys_of(1, 2)) == [HIT] * 2)
    assert len(second.tier._holders) < 3000
    assert await second.tier.load(second.frames(1, 2)) == [True] * 2


async def whatever_is_offered_nothing_raises(first, second):
    """Answers that are good but for some bytes: what came of them is unsound, or what was asked for."""
    rng, liar = Random(4), second.bus.subjects.peer("w-mutant")
    good = PeerQuery(space=SPACE, block_hashes=pack_u64([1]))
    num_loaded = 0

    async def mutate(message):
        answer = bytearray((await second.bus.request(first.bus.subjects.peer("w-1"), encode(good))).payload)
        for _ in range(rng.randint(0, 3)):
            answer[rng.randrange(len(answer))] = rng.randrange(256)
        second.bus.publish(message.reply, bytes(answer))

    async with anyio.create_task_group() as tasks:
        subscription = second.bus.subscribe(liar, lambda message: tasks.start_soon(mutate, message))
        for _ in range(60):
            second.tier._holders.store("w-mutant", [1])
            [frame] = second.frames(1)
            [came] = await second.tier.load([frame])
            num_loaded += came and is_sound(frame.view, frame.key)
            assert not is_sound(frame.view, frame.key) or bytes(frame.view[HEADER_BYTES:][:8]) == bytes([1, *[0] * 7])
            second.host.slots.abort_store([second.host.slots.find(frame.key)])
        subscription.unsubscribe()
        tasks.cancel_scope.cancel()
    assert 0 < num_loaded < 60
