"""What a worker tells about its blocks: numbered batches, recent ones again, and snapshots."""

import random

import pytest

from bus.codec import codec
from bus.messages.base import pack_u64, unpack_u64
from bus.messages.kv import BlocksCleared, BlocksRemoved, BlocksStored, KvBatch, KvEvent, KvQuery
from kv_events.log import MAX_BATCH_EVENTS, MAX_PART_BLOCKS, MAX_RECENT_BATCHES, KvLog

EPOCH = 7
_batches = codec(KvBatch)
_events = codec(KvEvent)  # type: ignore[arg-type]


def decode(payloads):
    return [_batches.decode(payload) for payload in payloads]


def events_of(batches):
    return [_events.decode(bytes(raw)) for batch in batches for raw in batch.events]


def held_after(events):
    """Return what a reader holds, by tier: block to parent."""
    held = {}
    for event in events:
        tier = held.setdefault(event.tier, {})
        if isinstance(event, BlocksStored):
            parent = event.parent_hash
            for block in unpack_u64(event.block_hashes):
                tier[block] = parent
                parent = block
        elif isinstance(event, BlocksRemoved):
            for block in unpack_u64(event.block_hashes):
                tier.pop(block, None)
        else:
            tier.clear()
    return {tier: blocks for tier, blocks in held.items() if blocks}


def stored(parent, *hashes, tier="device"):
    return BlocksStored(parent, pack_u64(hashes), tier)


def removed(*hashes, tier="device"):
    return BlocksRemoved(pack_u64(hashes), tier)


@pytest.fixture
def log():
    return KvLog("w-1", EPOCH)


def test_batches_are_numbered_without_gaps(log):
    many = [stored(0, number) for number in range(1, MAX_BATCH_EVENTS + 3)]
    batches = decode([*log.append(many), *log.append([removed(1)])])
    assert [(batch.first_seq, len(batch.events)) for batch in batches] == [
        (0, MAX_BATCH_EVENTS),
        (MAX_BATCH_EVENTS, 2),
        (MAX_BATCH_EVENTS + 2, 1),
    ]
    assert log.next_seq == MAX_BATCH_EVENTS + 3
    assert {(batch.worker, batch.epoch, batch.num_parts) for batch in batches} == {("w-1", EPOCH, 0)}


def test_the_digest_covers_the_device_tier_only(log):
    log.append([stored(0, 5, 6), stored(0, 9, tier="host"), stored(0, 5), removed(6, 77)])
    assert (log.num_blocks, log.xor) == (1, 5)
    log.append([BlocksCleared()])
    assert (log.num_blocks, log.xor) == (0, 0)


def test_a_reader_that_missed_a_little_gets_the_events_since(log):
    log.append([stored(0, 1), stored(1, 2)])
    log.append([stored(2, 3)])
    log.append([stored(3, 4)])
    batches = decode(log.answer(KvQuery(epoch=EPOCH, since=2)))
    assert [batch.first_seq for batch in batches] == [2, 3]
    assert decode(log.answer(KvQuery(epoch=EPOCH, since=1)))[0].first_seq == 0
    assert decode(log.answer(KvQuery(epoch=EPOCH, since=4))) == []


@pytest.mark.parametrize(
    "query",
    [KvQuery(), KvQuery(epoch=EPOCH - 1, since=0), KvQuery(epoch=EPOCH, since=3), KvQuery(epoch=EPOCH, since=-1)],
)
def test_any_other_reader_gets_a_snapshot(log, query):
    log.append([stored(0, 1, 2)])
    (batch,) = decode(log.answer(query))
    assert (batch.first_seq, batch.part, batch.num_parts) == (1, 0, 1)
    assert held_after(events_of([batch])) == {"device": {1: 0, 2: 1}}


def test_an_empty_worker_has_a_snapshot_too(log):
    (batch,) = decode(log.snapshot())
    assert (batch.first_seq, batch.num_parts, batch.events) == (0, 1, [])


def test_recent_batches_are_bounded(log, monkeypatch):
    for number in range(MAX_RECENT_BATCHES + 1):
        log.append([stored(0, number + 1)])
    monkeypatch.setattr("kv_events.log.MIN_SNAPSHOT_BYTES", 2**30)
    assert decode(log.answer(KvQuery(epoch=EPOCH, since=0)))[0].num_parts > 0
    assert len(list(log.answer(KvQuery(epoch=EPOCH, since=1)))) == MAX_RECENT_BATCHES


def test_who_missed_more_than_is_held_gets_a_snapshot(log):
    for _ in range(3):
        log.append([stored(0, *range(1, 5000)), BlocksCleared()])
    (batch,) = decode(log.answer(KvQuery(epoch=EPOCH, since=0)))
    assert batch.num_parts == 1


def test_a_snapshot_is_cut_into_parts_and_does_not_see_what_comes_later(log):
    hashes = range(1, MAX_PART_BLOCKS + 10)
    log.append([stored(0, *hashes), stored(0, 7, tier="disk")])
    parts = log.snapshot()
    log.append([BlocksCleared()])
    batches = decode(parts)
    assert [(batch.part, batch.num_parts) for batch in batches] == [(0, 3), (1, 3), (2, 3)]
    assert held_after(events_of(batches)) == {"device": {h: h - 1 for h in hashes}, "disk": {7: 0}}


def test_sequences_that_grow_side_by_side_are_told_as_chains(log):
    for step in range(5):
        log.append([stored(10 * number + step if step else 0, 10 * number + step + 1) for number in range(1, 4)])
    events = events_of(decode(log.snapshot()))
    assert [len(unpack_u64(event.block_hashes)) for event in events] == [5, 5, 5]


@pytest.mark.parametrize("seed", range(20))
def test_a_snapshot_equals_the_events(log, seed):
    rng = random.Random(seed)
    told, tree = [], {0: 0}
    for _ in range(60):
        parent = rng.choice(list(tree))
        chain = [rng.randrange(1, 40) * 1000 + parent % 1000 + 1 for _ in range(1)]
        tree.update(dict.fromkeys(chain, parent))
        tier = rng.choice(["device", "host"])
        told.append(rng.choice([stored(parent, *chain, tier=tier)] * 4 + [removed(rng.choice(list(tree)), tier=tier)]))
        if rng.random() < 0.02:
            told.append(BlocksCleared(tier))
    log.append(told)
    held = held_after(events_of(decode(log.snapshot())))
    assert {tier: set(blocks) for tier, blocks in held.items()} == {
        tier: set(blocks) for tier, blocks in held_after(told).items()
    }


def test_a_checkpoint_is_due_when_more_changed_than_is_held(log):
    log.append([stored(0, *range(1, 4097))])
    assert not log.is_checkpoint_due()
    log.append([removed(1)])
    assert log.is_checkpoint_due()
    (part,) = decode(log.checkpoint())
    assert part.num_parts == 1
    assert not log.is_checkpoint_due()
    log.append([stored(0, *range(5000, 17_000))])
    log.checkpoint()
    log.append([removed(*range(5000, 11_000))])
    assert log.is_checkpoint_due()
