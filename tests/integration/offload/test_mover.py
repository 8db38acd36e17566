"""The mover: blocks come back whole from every tier, in time or not at all, and nothing half-moved is ever found."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from bus.metrics import OFFLOAD_LATE
from offload.key import BlockKey, is_sound, space_of
from offload.promote import Link
from offload.tier import Presence, Retention

pytestmark = pytest.mark.anyio

NUMBERS = range(1, 21)


async def test_blocks_come_back_from_host_memory(stage: Any) -> None:
    async with stage() as at:
        await at.store(*NUMBERS)
        assert await at.fill(*NUMBERS) == 20
        assert await at.fill(*NUMBERS, 99) == 20


async def test_a_short_copy_of_what_host_memory_has_waits_for_nothing(stage: Any) -> None:
    two_megabytes = range(1, 201)
    async with stage(host_blocks=256) as at:
        await at.store(*two_megabytes)
        assert at.fill_at_once(*NUMBERS, is_idle=False)
        assert not at.fill_at_once(*NUMBERS, 999, is_idle=True), "one is missing"
        assert not at.fill_at_once(*two_megabytes, is_idle=False), "who waits for a step would wait for this"
        assert at.fill_at_once(*two_megabytes, is_idle=True)
        assert not any(at.host.slots._pins)


async def test_what_left_host_memory_comes_back_from_a_tier(stage: Any, told_tier: Any, eventually: Any) -> None:
    tier = told_tier()
    async with stage(tier) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        assert all(is_sound(memoryview(frame), key) for key, frame in tier.frames.items())
        at.trust("redis")
        at.forget_host(*NUMBERS[5:])
        assert await at.fill(*NUMBERS) == 20
        assert tier.num_loads == 1


async def test_stores_go_side_by_side_and_what_is_kept_for_longer_waits_for_them(
    stage: Any, told_tier: Any, links: Any, eventually: Any
) -> None:
    tier, numbers = told_tier(), range(1, 241)
    async with stage(tier, host_blocks=2048) as at:
        tier.may_go_on = anyio.Event()
        await at.store(*numbers)
        at.mover.retain(links(*numbers), Retention(priority=5))
        await eventually(lambda: tier.num_storing == 4)
        assert not tier.retained
        tier.may_go_on.set()
        await eventually(lambda: len(tier.retained) == len(tier.frames) == len(numbers))


async def test_short_chains_are_stored_together_and_tenants_apart(
    stage: Any, told_tier: Any, links: Any, eventually: Any
) -> None:
    tier = told_tier()
    ours = links(*NUMBERS)
    others = [Link(BlockKey(space_of("model", "another"), link.key.block_hash), 0) for link in ours]
    async with stage(tier) as at:
        tier.is_dead = True
        for chain in (ours, others):
            await at.mover.store(chain, at.device.addresses(range(20)), Retention())
        await eventually(lambda: sum(len(store) for store in tier.stores) == 40 and not tier.num_storing)
        tier.stores, tier.is_dead = [], False
        for link in (*ours, ours[0], *others):
            at.mover.retain([link], Retention(priority=5))
        await eventually(lambda: len(tier.frames) == 40)
        assert tier.stores == [[link.key for link in ours], [link.key for link in others]]


async def test_two_tiers_are_read_at_the_same_time(stage: Any, told_tier: Any, eventually: Any) -> None:
    one, other = told_tier("redis"), told_tier("s3")
    async with stage(one, other) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(one.frames) == len(other.frames) == 20)
        at.trust("redis")
        at.trust("s3")
        at.forget_host(*NUMBERS)
        assert await at.fill(*NUMBERS) == 20
        assert (one.num_loads, other.num_loads) == (1, 1)


async def test_a_tier_that_hangs_is_waited_for_until_the_deadline_and_then_not_any_more(
    stage: Any, told_tier: Any, eventually: Any
) -> None:
    tier = told_tier()
    late = OFFLOAD_LATE.labels("redis")._value
    before = late.get()
    async with stage(tier) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        at.trust("redis")
        at.forget_host(*NUMBERS[10:])
        tier.may_go_on = anyio.Event()
        with anyio.fail_after(30):
            assert await at.fill(*NUMBERS) == 10, "what host memory has is used all the same"
        assert late.get() == before + 1
        assert not at.gate.is_open("redis")
        assert at.plan(*NUMBERS[10:]).num_blocks == 0
        tier.may_go_on.set()
        await eventually(lambda: set(at.host.slots.lookup(tier.frames)) == {Presence.HIT})
        assert await at.fill(*NUMBERS) == 20, "what came too late serves whoever is next"


async def test_a_tier_proves_itself_by_probes_before_anybody_waits_for_it(
    stage: Any, told_tier: Any, eventually: Any
) -> None:
    tier = told_tier()
    async with stage(tier) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        at.forget_host(*NUMBERS)
        assert at.plan(*NUMBERS).num_blocks == 0
        await eventually(lambda: at.gate.is_open("redis"))
        assert tier.num_loads == 3
        assert at.plan(*NUMBERS).num_blocks == 20


async def test_a_tier_that_proved_itself_with_single_blocks_is_measured_with_many(
    stage: Any, told_tier: Any, eventually: Any
) -> None:
    tier = told_tier()
    async with stage(tier) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        for _ in range(3):
            at.gate.note_load("redis", 1, 0.1, 0.0)
        at.forget_host(*NUMBERS)
        assert at.plan(*NUMBERS).num_blocks == 0, "a block seems to take longer than computing it"
        await eventually(lambda: at.host.slots.lookup(tier.frames) == [Presence.HIT] * 20)
        assert tier.num_loads == 1
        at.forget_host(*NUMBERS)
        assert at.plan(*NUMBERS).num_blocks == 20, "it is latency"


async def test_a_tier_that_is_slow_to_begin_is_measured_with_as_many_blocks_as_pay(
    stage: Any, told_tier: Any, eventually: Any
) -> None:
    tier, numbers = told_tier(), range(1, 191)
    async with stage(tier, host_blocks=512, token_s=1e-4) as at:
        await at.store(*numbers)
        await eventually(lambda: len(tier.frames) == len(numbers))
        for size in (1, 7, 15):
            at.gate.note_load("redis", size, 0.1, 0.0)
        at.forget_host(*numbers)
        assert at.plan(*numbers).num_blocks == 0, "the gate knows nothing of more than 60, which computing has earlier"
        await eventually(lambda: tier.num_loads == 1 and at.gate.room("redis") == 240)
        at.forget_host(*numbers)
        assert at.plan(*numbers).num_blocks == len(numbers)


async def test_a_tier_that_never_pays_is_measured_with_few_blocks(stage: Any, told_tier: Any, eventually: Any) -> None:
    tier, numbers = told_tier(), range(1, 191)
    async with stage(tier, host_blocks=512, token_s=1e-4) as at:
        await at.store(*numbers)
        await eventually(lambda: len(tier.frames) == len(numbers))
        for size in (1, 7, 15):
            at.gate.note_load("redis", size, 0.01 * size, 0.0)
        at.forget_host(*numbers)
        at.plan(*numbers)
        await eventually(lambda: tier.num_loads == 1 and at.gate.room("redis") == 4 * 24)


async def test_a_dead_tier_costs_nothing_and_comes_back(stage: Any, told_tier: Any, eventually: Any) -> None:
    tier = told_tier()
    async with stage(tier) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        at.trust("redis")
        at.forget_host(*NUMBERS)
        tier.is_dead = True
        assert await at.fill(*NUMBERS) == 0
        assert not at.gate.is_open("redis")
        tier.is_dead = False

        def has_come_back() -> bool:
            at.forget_host(*NUMBERS)
            at.plan(*NUMBERS)
            return at.gate.is_open("redis")

        await eventually(has_come_back)


async def test_broken_bytes_are_a_miss_and_are_removed(stage: Any, told_tier: Any, eventually: Any) -> None:
    tier = told_tier()
    async with stage(tier) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        at.trust("redis")
        at.forget_host(*NUMBERS)
        broken = list(tier.frames)[7]
        frame = bytearray(tier.frames[broken])
        frame[-1] ^= 1
        tier.frames[broken] = bytes(frame)
        assert await at.fill(*NUMBERS) == 7
        assert broken not in tier.frames


async def test_requests_that_want_the_same_blocks_load_them_once(stage: Any, told_tier: Any, eventually: Any) -> None:
    tier = told_tier()
    async with stage(tier, token_s=0.1) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == 20)
        at.trust("redis", block_s=0.05)
        at.forget_host(*NUMBERS)
        tier.may_go_on = anyio.Event()
        counts = []

        async def fill() -> None:
            counts.append(await at.fill(*NUMBERS))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(fill)
            await eventually(lambda: tier.num_loads == 1)
            tier.may_go_on.set()
        assert counts == [20, 20, 20]
        assert tier.num_loads == 1


async def test_more_than_host_memory_holds_goes_through_it(stage: Any, told_tier: Any, eventually: Any) -> None:
    tier = told_tier()
    async with stage(tier, host_blocks=16) as at:
        for first in range(1, 101, 10):
            await at.store(*range(first, first + 10), parent=first - 1)
            await eventually(lambda first=first: len(tier.frames) >= first + 9)
        at.trust("redis")
        assert await at.fill(*range(1, 11)) == 10
        assert at.host.slots.num_slots == 16


UNCANCELLED = 100_000
"""Turns of an event loop that are more than any store or load lasts."""


async def _cancel_after(num_turns: int, work: Callable[[], Any]) -> bool:
    """Run `work` and cancel it after so many turns of the event loop; say whether it was done by then."""
    loop, is_done = asyncio.get_running_loop(), False
    with anyio.CancelScope() as scope:

        def turn(left: int) -> None:
            if is_done:
                return
            if left:
                loop.call_soon(turn, left - 1)
            else:
                scope.cancel()

        turn(num_turns)
        await work()
        is_done = True
    return is_done


@pytest.mark.parametrize("inline_bytes", [0, 2**20], ids=["in threads", "inline"])
async def test_a_store_or_load_that_ends_at_any_await_leaves_nothing_wrong_and_nothing_taken(
    stage: Any, told_tier: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    monkeypatch.setattr("offload.copier.MemoryCopier.inline_bytes", inline_bytes)
    tier = told_tier()
    async with stage(tier, host_blocks=40) as at:
        at.trust("redis")

        async def all_rests() -> None:
            await eventually(
                lambda: not any(at.host.slots._pins) and bytes([1]) not in at.host.slots._states  # none is being filled
            )

        def numbers(turn: int) -> Sequence[int]:
            return range(1000 * turn + 1, 1000 * turn + 6)

        ended = False
        for turn in (*range(60), UNCANCELLED):
            ended = await _cancel_after(turn, lambda turn=turn: at.store(*numbers(turn)))
            await all_rests()
            assert await at.fill(*numbers(turn)) in (0, 5)
        assert ended, "the last ones were not cancelled at all"
        for turn in (*range(60), UNCANCELLED):
            at.forget_host(*numbers(59))
            ended = await _cancel_after(turn, lambda: at.fill(*numbers(59)))
            await all_rests()
        assert ended
        await at.store(*numbers(59))
        assert await at.fill(*numbers(59)) == 5


async def test_pins_with_a_time_reach_the_tiers(stage: Any, told_tier: Any, eventually: Any, links: Any) -> None:
    kept: list[tuple[int, Retention]] = []

    class Noting(told_tier):  # type: ignore[misc]
        async def retain(self, keys: Any, retention: Retention) -> None:
            kept.append((len(keys), retention))

    async with stage(tier := Noting()) as at:
        await at.store(*NUMBERS)
        await eventually(lambda: len(tier.frames) == len(NUMBERS))
        assert not kept
        at.forget_host(*NUMBERS)
        at.mover.retain(links(*NUMBERS), Retention(5, 2e10))
        await eventually(lambda: kept == [(len(NUMBERS), Retention(5, 2e10))])
