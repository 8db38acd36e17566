"""Where requests go: prefixes against queues, bursts, late binding, fairness, refusals."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from bus.messages.base import pack_u32, pack_u64
from bus.messages.fleet import TierRate, WorkerCard
from bus.messages.kv import BlocksStored
from bus.messages.route import Placed
from components.router.policy import BlindChoice, pick_cheapest
from components.router.pool import WINDOW
from kv_events.index import PEERS

Stage = Any
Make = Callable[..., Any]
BLOCK = 64


def prompt(length: int, first: int = 0) -> bytes:
    return pack_u32(range(first, first + length))


def hold(stage: Stage, worker: str, tokens: bytes, tier: str = "device") -> None:
    chain = stage.request(tokens + bytes(4)).chains[BLOCK]
    stage.index.apply(worker, [BlocksStored(0, pack_u64(chain), tier)])  # type: ignore[arg-type]


def test_a_prompt_goes_where_its_prefix_is(stage: Make) -> None:
    s = stage(8)
    hold(s, "w-5", prompt(4096))
    for _ in range(3):
        s.tick(1.0)
        assert s.place(s.request(prompt(4200))) == "w-5"


@pytest.mark.parametrize("mode", ["kv", "round_robin"])
def test_a_worker_that_falls_silent_gets_nothing_until_it_is_heard(stage: Make, mode: str) -> None:
    s = stage(2, mode=mode)
    if mode == "kv":
        hold(s, "w-1", prompt(4096))
    s.now += 0.8
    s.report("w-0")
    assert s.pool.fleet.silent(s.now) == []
    assert {s.place(s.request(prompt(4200))) for _ in range(3)} == {"w-0"}
    s.report("w-1")
    assert "w-1" in {s.place(s.request(prompt(4200))) for _ in range(3)}


def test_who_could_not_listen_blames_no_worker(stage: Make) -> None:
    s = stage(2)
    s.now += 0.8
    assert s.pool.fleet.silent(s.now) == []
    assert s.place(s.request()) == "", "nobody was heard"
    s.pool.fleet.excuse_silence(s.now)
    assert s.plan(), "the one that waits finds its worker"


def test_a_busy_holder_is_worth_waiting_for_only_while_that_is_quicker(stage: Make) -> None:
    s = stage(8)
    hold(s, "w-5", prompt(8192))
    s.report("w-5", running=1, prefill_tokens=2000)
    assert s.place(s.request(prompt(8300))) == "w-5"
    s.report("w-5", running=20, prefill_tokens=80_000)
    assert s.place(s.request(prompt(8300))) != "w-5", "the prefix is replicated"


def test_a_burst_of_equal_prompts_shares_one_computation(stage: Make) -> None:
    s = stage(8)
    requests = [s.request(prompt(6000)) for _ in range(20)]
    places = Counter(s.place(request) for request in requests)
    assert places.most_common(1)[0][1] >= 15


def test_different_prompts_spread(stage: Make) -> None:
    s = stage(8)
    places = Counter(s.place(s.request(length=6000)) for _ in range(8))
    assert len(places) == 8


def test_lower_tiers_count_by_the_time_that_loading_takes(stage: Make) -> None:
    s = stage(2)
    for worker in ("w-0", "w-1"):
        s.report(worker, tiers=[TierRate("host", "", 0.0, 1e-6), TierRate("disk", "", 0.0, 1.0)])
    hold(s, "w-0", prompt(8192), "disk")
    hold(s, "w-1", prompt(2048), "host")
    assert s.place(s.request(prompt(8300))) == "w-1", "loading from this disk is slower than computing"


def test_what_a_shared_tier_has_every_attached_worker_can_load(stage: Make) -> None:
    s = stage(3)
    chain = s.request(prompt(8192) + bytes(4)).chains[BLOCK]
    s.index.apply_shared("redis-1", [BlocksStored(0, pack_u64(chain), "remote")])
    s.report("w-1", tiers=[TierRate("remote", "redis-1", 0.001, 1e-6)])
    s.report("w-2", tiers=[TierRate("remote", "redis-2", 0.001, 1e-7)])
    request = s.request(prompt(8300))
    assert {each.worker: each.uncached_tokens for each in s.pool.candidates(request, s.now)} == {
        "w-0": 8300,
        "w-1": 8300 - 8192,
        "w-2": 8300,
    }
    assert s.place(request) == "w-1"
    s.pool.leave("w-1")
    s.report("w-0", tiers=[TierRate("remote", "redis-1", 0.001, 1e-6)])
    assert s.place(s.request(prompt(8300))) == "w-0", "the blocks stay when the worker that told of them goes"


def test_the_host_memory_of_peers_is_a_tier_of_those_who_read_it(stage: Make) -> None:
    s = stage(3)
    hold(s, "w-0", prompt(8192), "host")
    s.report("w-0", tiers=[TierRate("host", "", 0.0, 1e-7)])
    s.report("w-1", tiers=[TierRate("remote", PEERS, 0.001, 1e-6)])
    found = {each.worker: each.uncached_tokens for each in s.pool.candidates(s.request(prompt(8300)), s.now)}
    assert found == {"w-0": 108, "w-1": 108, "w-2": 8300}


def test_a_shared_tier_that_is_slower_than_computing_changes_nothing(stage: Make) -> None:
    s = stage(2)
    chain = s.request(prompt(8192) + bytes(4)).chains[BLOCK]
    s.index.apply_shared("s3-1", [BlocksStored(0, pack_u64(chain), "remote")])
    before = s.pool.candidates(s.request(prompt(8300)), s.now)
    for rate in (TierRate("remote", "s3-1", 0.0, 1.0), TierRate("remote", "s3-1", 60.0, 0.0)):
        s.report("w-1", tiers=[rate])
        assert s.pool.candidates(s.request(prompt(8300)), s.now) == before


def test_late_binding_a_worker_gets_little_more_than_it_can_start(stage: Make) -> None:
    s = stage(2)
    for _ in range(20):
        assert s.admit(s.request(length=8192)) is None
    first = s.plan()
    assert len(first) == 4, "two steps of work for each"
    assert s.plan() == []
    s.now += 0.2
    assert 1 <= len(s.plan()) <= 2


def test_no_more_leaves_at_once_than_may(stage: Make) -> None:
    s = stage(64)
    for _ in range(40):
        assert s.admit(s.request()) is None
    assert 10 <= len(s.pool.plan(s.now, 10)) < 10 + WINDOW
    assert len(s.pool.queue) > 40 - 10 - WINDOW
    s.plan()
    assert not len(s.pool.queue)


def test_who_waits_knows_of_every_prompt_that_was_sent_meanwhile(stage: Make) -> None:
    s, rng = stage(4), Random(3)
    heads = [prompt(640) + bytes([number, 0, 0, 0]) * 64 for number in range(3)] + [b"", prompt(640)]
    waiting = [(tokens, s.request(tokens)) for tokens in (head + rng.randbytes(4 * 1024) for head in heads * 3)]
    for sent in range(40):
        for tokens, request in waiting:
            fresh = s.pool.candidates(s.request(tokens), s.now)
            assert s.pool.candidates(request, s.now) == fresh
        if sent == 30:
            s.pool.leave("w-1")
        s.place(s.request(rng.choice(heads) + rng.randbytes(4 * 256)))


def test_one_that_waits_for_its_holder_lets_others_pass(stage: Make) -> None:
    s = stage(2)
    hold(s, "w-0", prompt(60_000))
    s.report("w-0", running=2, prefill_tokens=24_000)
    s.report("w-1", running=2, prefill_tokens=4000)
    patient, other = s.request(prompt(60_100)), s.request(length=500)
    assert s.admit(patient) is None
    assert s.admit(other) is None
    assert s.plan() == [(other.key, "w-1")]
    s.now += 0.4
    assert s.plan() == [(patient.key, "w-0")]


def test_those_behind_see_who_waits_for_a_worker(stage: Make) -> None:
    s = stage(2)
    hold(s, "w-0", prompt(16_384))
    s.report("w-0", running=2, prefill_tokens=18_700)
    requests = [s.request(prompt(16_384) + prompt(2000, first=90_000 * n)) for n in range(1, WINDOW)]
    for request in requests:
        assert s.admit(request) is None
    places = dict(s.plan())
    assert 0 < len(places) < len(requests)
    assert set(places.values()) == {"w-1"}


def test_saturated_tenants_share_by_weight(stage: Make) -> None:
    s = stage(4, tenant_weights={"gold": 4.0})
    tokens: Counter[str] = Counter()
    sizes = Random(1)
    for turn in range(400):
        for tenant in ("gold", "tin"):
            while s.pool.queue.tokens_ahead("standard", tenant) < 200_000:
                s.admit(s.request(length=sizes.randrange(500, 4000), tenant=tenant))
        for placement in s.pool.plan(s.now):
            if turn > 20:
                tokens[placement.request.tenant] += placement.choice.uncached_tokens
        s.tick(0.05)
    assert 3.8 <= tokens["gold"] / tokens["tin"] <= 4.2


def test_priority_orders_a_tenants_requests_and_is_worth_a_bounded_time(stage: Make) -> None:
    at = stage(1)
    full = [at.request(length=8192) for _ in range(40)]
    for request in full:
        at.admit(request)
    at.plan()
    names = {}
    for name, priority, wait_s in (("low", -5, 0.0), ("plain", 0, 0.1), ("high", 10, 0.1), ("late", 10, 2.0)):
        at.now += wait_s
        request = at.request(priority=priority)
        names[request.key] = name
        assert at.admit(request) is None
    order = [entry.item.key for entry in at.pool.queue.peek(100)]
    assert [names[key] for key in order if key in names] == ["high", "plain", "low", "late"]


def test_a_batch_flood_leaves_workers_for_others_while_there_are_any(stage: Make) -> None:
    s = stage(4)
    assert s.place(s.request(length=10, latency_class="interactive"))
    s.tick(1.0)
    for _ in range(50):
        assert s.admit(s.request(length=8192, latency_class="batch")) is None
    assert sorted(worker for _, worker in s.plan()) == ["w-2", "w-3"]
    urgent = s.request(length=2000, latency_class="interactive")
    assert s.admit(urgent) is None
    placed = s.plan()
    assert [key for key, _ in placed] == [urgent.key]
    s.tick(61.0)
    assert len(s.plan()) > 4, "nobody else is there any more"


@pytest.mark.parametrize(("prefill", "decode"), [("w-0", "w-1"), ("w-1", "w-0")])
def test_a_batch_is_served_where_the_only_worker_of_a_side_would_be_kept_for_others(
    stage: Make, card: Callable[..., WorkerCard], prefill: str, decode: str
) -> None:
    s = stage(2, disaggregate="always")
    s.pool.join(card(prefill, roles=["prefill"]), s.now)
    s.pool.join(card(decode, roles=["decode"]), s.now)
    assert s.place(s.request(length=10, latency_class="interactive"))
    s.tick(1.0)
    assert s.place(s.request(latency_class="batch")) == prefill
    assert s.place(s.request(latency_class="batch", num_prefilled_blocks=16)) == decode


def test_what_is_prefilled_goes_before_what_came_before_it(stage: Make) -> None:
    """Behind a queue it lost its blocks again and again: all that was prefilled was prefilled anew."""
    s = stage(1)
    s.report("w-0", running=s.pool.fleet.state(0).max_running + 1)
    earlier = [s.request() for _ in range(2 * WINDOW)]
    for request in earlier:
        assert s.place(request) == ""
    s.now += 0.1
    prefilled = s.request(num_prefilled_blocks=16)
    assert s.place(prefilled) == ""
    s.report("w-0", running=s.pool.fleet.state(0).max_running)
    assert s.plan() == [(prefilled.key, "w-0")]


def test_a_request_that_would_wait_too_long_is_refused_with_the_real_wait(stage: Make) -> None:
    s = stage(1, max_wait_s=5.0)
    refusals = []
    for _ in range(100):
        for _ in range(8):
            refusal = s.admit(s.request(length=8192))
            if refusal is not None:
                refusals.append(refusal)
        s.plan()
        s.tick(0.1)
        s.pool.note_time(s.now)
    assert refusals
    assert refusals[-1].code == "overloaded"
    assert refusals[-1].retry_after_s >= 1.0
    assert 20 <= len(s.pool.queue) <= 45, "five seconds of work at six requests a second"


def test_a_long_prompt_in_the_queue_is_not_ages_where_workers_are_full_of_short_ones(stage: Make) -> None:
    s = stage(1)
    number_of_running = s.pool.fleet.state(0).max_running + 1
    for _ in range(30):
        s.report("w-0", running=number_of_running)
        s.admit(s.request(length=8))
        assert s.plan() == []
        s.report("w-0", running=number_of_running - 1)
        assert len(s.plan()) == 1, "one ends in a tenth of a second"
        s.now += 0.1
        s.admit(s.request(length=8))
        s.pool.note_time(s.now)
    assert s.admit(s.request(length=65_536)) is None
    assert s.admit(s.request(length=8)) is None


def test_a_deadline_that_cannot_be_met_is_refused_early(stage: Make) -> None:
    s = stage(1)
    assert s.admit(s.request(), deadline=s.now - 1.0) is not None
    for _ in range(30):
        s.admit(s.request(length=8192))
        s.plan()
        s.tick(0.05)
        s.pool.note_time(s.now)
    assert s.admit(s.request(), deadline=s.now + 0.2) is not None
    assert s.admit(s.request(), deadline=s.now + 20.0) is None


def test_a_router_that_was_just_started_refuses_nobody_for_what_it_has_not_seen(stage: Make) -> None:
    s = stage(0)
    for _ in range(20):
        assert s.admit(s.request()) is None
        s.now += 0.1
        s.pool.note_time(s.now)
    assert len(s.pool.queue) == 20


def test_who_waited_too_long_is_let_go(stage: Make) -> None:
    s = stage(0, max_wait_s=2.0)
    assert s.admit(s.request()) is None
    assert s.admit(s.request(), deadline=s.now + 1.0) is None
    assert s.plan() == []
    assert s.pool.expire(s.now + 0.5) == []
    assert len(s.pool.expire(s.now + 1.5)) == 1
    assert len(s.pool.expire(s.now + 2.5)) == 1
    assert len(s.pool.queue) == 0


def test_what_a_dead_worker_never_accepted_goes_to_another(stage: Make) -> None:
    s = stage(2)
    request = s.request(length=500)
    worker = s.place(request)
    assert s.pool.leave(worker) == 1
    assert s.plan() == [(request.key, "w-1" if worker == "w-0" else "w-0")]


def test_what_other_routers_sent_to_a_dead_worker_has_no_one_left_but_its_owner(stage: Make) -> None:
    s = stage(2)
    theirs = Placed("q", "w-1", "t", "standard", 64, 64, BLOCK, b"", "f-1", 7)
    asked = Placed("p", "w-1", "t", "standard", 64, 64, BLOCK, b"")
    for placed in (theirs, asked):
        s.pool.hear(placed, s.now)
    assert s.pool.leave("w-0") == 0
    assert s.pool.orphans == []
    assert s.pool.leave("w-1") == 0
    assert s.pool.orphans == [theirs], "nobody owns what was only asked for"


def test_what_a_worker_had_time_to_accept_is_no_orphan(stage: Make) -> None:
    s = stage(1)
    s.pool.hear(Placed("q", "w-0", "t", "standard", 64, 64, BLOCK, b"", "f-1", 7), s.now)
    s.now += 1.0
    s.report("w-0")
    s.pool.leave("w-0")
    assert s.pool.orphans == []


def test_other_routers_decisions_count(stage: Make) -> None:
    s = stage(2)
    chain = pack_u64(s.request(prompt(4096)).chains[BLOCK])
    s.pool.hear(Placed("q", "w-1", "t", "standard", 4096, 4096, BLOCK, chain), s.now)
    s.now += 0.5
    assert s.place(s.request(prompt(4096))) == "w-1", "its blocks will be there"
    s.pool.hear(Placed("r", "w-0", "t", "standard", 60_000, 60_000, BLOCK, b""), s.now)
    assert s.place(s.request(length=3000)) == "w-1", "there is work ahead on the other"
    s.pool.hear(Placed("s", "w-9", "t", "standard", 1, 1, BLOCK, b""), s.now)


def test_a_session_stays_unless_it_costs_too_much(stage: Make) -> None:
    s = stage(8, session_affinity_s=0.05)
    home = s.place(s.request(length=200, session="s-1"))
    for _ in range(5):
        s.tick(1.0)
        assert s.place(s.request(length=200, session="s-1")) == home
    s.report(home, running=20, prefill_tokens=80_000)
    assert s.place(s.request(length=200, session="s-1")) != home


def test_workers_that_generate_nothing_are_left_alone(stage: Make, card: Callable[..., WorkerCard]) -> None:
    s = stage(0)
    s.pool.join(card("e", roles=["encode"]), s.now)
    assert s.place(s.request()) == ""


@pytest.mark.parametrize("mode", ["round_robin", "random", "power_of_two", "least_loaded"])
def test_blind_modes_place_everything_at_once(stage: Make, mode: str) -> None:
    s = stage(4, mode=mode)
    places = Counter(s.place(s.request(length=9000)) for _ in range(200))
    assert sum(places.values()) == 200
    assert min(places[f"w-{n}"] for n in range(4)) >= (50 if mode in ("round_robin", "least_loaded") else 30)


def test_round_robin_goes_round(stage: Make) -> None:
    s = stage(3, mode="round_robin")
    assert [s.place(s.request()) for _ in range(6)] == ["w-0", "w-1", "w-2"] * 2


def test_equal_costs_go_by_rank_and_then_by_chance() -> None:
    rng = Random(1)
    ranks = [(7, 0.0), (7, 5.0), (7, 5.0), (0, 0.0)]

    def rank(numbers: list[int]) -> list[tuple[int, float]]:
        return [ranks[number] for number in numbers]

    assert pick_cheapest([], rank, rng) is None
    assert pick_cheapest([float("inf")], rank, rng) is None
    assert pick_cheapest([1.0005, 1.0, 1.0, 2.0], rank, rng) == 0
    picks = Counter(pick_cheapest([2.0, 1.0, 1.0, float("inf")], rank, rng) for _ in range(1000))
    assert set(picks) == {1, 2}
    assert min(picks.values()) > 400


def test_temperature_softens_the_choice() -> None:
    rng = Random(1)
    picks = Counter(pick_cheapest([1.1, 1.0, float("inf")], lambda _: [], rng, 0.1) for _ in range(4000))
    assert 2.3 < picks[1] / picks[0] < 3.2
    assert set(picks) == {0, 1}


def test_cold_prompts_use_all_caches_alike(stage: Make) -> None:
    s = stage(4)
    tokens: Counter[str] = Counter()
    for length in range(1000, 9000, 100):
        tokens[s.place(s.request(length=length))] += length
        s.tick(1.0)
    assert max(tokens.values()) < 1.1 * min(tokens.values())


def test_workers_that_have_not_worked_yet_are_thought_to_be_as_good_as_those_that_have(
    stage: Make, card: Callable[..., WorkerCard], steps: Callable[..., Any]
) -> None:
    s = stage(0)
    for number in range(6):
        s.pool.join(card(f"w-{number}"), s.now)
    for _ in range(5):
        s.report("w-0", steps=steps())
    used = set()
    for _ in range(6):
        s.tick(5.0)
        used.add(s.place(s.request(length=8192)))
    assert len(used) == 6, "each time, there is one whose cache is used the least"


def test_power_of_two_prefers_the_idler() -> None:
    choice = BlindChoice("power_of_two", Random(2))
    picks = Counter(choice.pick([0, 1, 2], [9, 0, 9]) for _ in range(900))
    assert picks[1] > 500
    assert choice.pick([], []) is None


def test_candidates_tell_why(stage: Make) -> None:
    s = stage(3)
    hold(s, "w-2", prompt(1024))
    s.report("w-1", running=1, prefill_tokens=80_000)
    request = s.request(prompt(2000))
    first, second, last = s.pool.candidates(request, s.now)
    assert (first.worker, first.cached_tokens, first.uncached_tokens) == ("w-2", 1024, 976)
    assert (second.worker, last.worker, second.cached_tokens, last.num_requests) == ("w-0", "w-1", 0, 1)
    assert first.cost_s < second.cost_s < last.cost_s
    assert last.wait_s > 0.1 > second.wait_s
    assert first.worker == s.pool.choose(request, s.now).worker


def test_a_router_that_ignores_prefixes_names_its_candidates_too(stage: Make) -> None:
    s = stage(2, mode="round_robin")
    assert {(each.worker, each.cost_s) for each in s.pool.candidates(s.request(), s.now)} == {
        ("w-0", 0.0),
        ("w-1", 0.0),
    }
