"""Where a prompt is computed: prices, hysteresis, the fixed modes, and the lanes that follow from roles."""

from random import Random
from typing import Any

import pytest

from bus.config import RouterConfig
from bus.messages.fleet import StepSample, WorkerCard, WorkerLoad
from components.router.disaggregate import HANDOVER_S, Disaggregation, Verdict
from components.router.pool import Pool
from components.router.request import Request
from components.router.sides import Sides
from kv_events.index import PrefixIndex


def card(worker: str, *roles: Any) -> WorkerCard:
    return WorkerCard(
        worker=worker, model="m", engine="mock", roles=list(roles), slots=64, block_size=16, num_blocks=4096,
        max_model_len=8192, host="h", pid=1, version="0", started_at=0.0, max_running=32,
    )  # fmt: skip


def load(worker: str, **fields: Any) -> WorkerLoad:
    """Return a report of steps that cost 10 ms and 0.1 ms for each prompt token."""
    steps = [StepSample(0.01 + 0.0001 * tokens, tokens, 4, 100) for tokens in (0, 512, 64, 0, 256, 512)] * 4
    facts = {"running": 0, "waiting": 0, "free_blocks": 4096, "num_blocks": 4096, "prefill_tokens": 0, "step_s": 0.01}
    return WorkerLoad(**{"worker": worker, "model": "m", "at": 0.0, "steps": steps, **facts, **fields})


def request(num_tokens: int, prefilled: int | None = None, key: str = "r:0") -> Request:
    return Request(
        key=key, tenant="t", latency_class="standard", num_tokens=num_tokens, chains={}, num_prefilled_blocks=prefilled
    )


def make_pool(mode: Any = "auto", decoding: int = 16, **reports: Any) -> Pool:
    pool = Pool(RouterConfig(disaggregate=mode), PrefixIndex(), Random(1))
    pool.join(card("p", "prefill"), 0.0)
    pool.join(card("d", "decode"), 0.0)
    pool.report(load("p", **reports), 0.0)
    pool.report(load("d", running=decoding), 0.0)
    return pool


def test_a_long_prompt_is_computed_elsewhere_while_many_decode_and_a_short_one_is_not() -> None:
    long = make_pool().choose(request(4000), 0.0)
    assert long is not None
    assert (long.worker, long.role) == ("p", "prefill")
    assert "prefilled elsewhere" in long.reason
    short = make_pool().choose(request(8), 0.0)
    assert short is not None
    assert (short.worker, short.role) == ("d", "decode")


def test_a_queue_at_the_prefill_worker_sends_prompts_to_the_other_one() -> None:
    choice = make_pool(decoding=2, prefill_tokens=60_000, waiting_tokens=60_000, waiting=15).choose(request(4000), 0.0)
    assert choice is not None
    assert choice.worker == "d"


@pytest.mark.parametrize(("mode", "worker"), [("always", "p"), ("never", "d")])
def test_fixed_modes_decide_alike_for_all(mode: str, worker: str) -> None:
    for num_tokens in (2, 4000):
        choice = make_pool(mode).choose(request(num_tokens), 0.0)
        assert choice is not None
        assert choice.worker == worker
        assert mode in choice.reason


def test_what_was_prefilled_goes_to_who_decodes_and_costs_its_way() -> None:
    pool = make_pool()
    choice = pool.choose(request(4001, prefilled=250), 0.0)
    assert choice is not None
    assert (choice.worker, choice.role, choice.uncached_tokens, choice.reason) == ("d", "decode", 1, "")
    pool.report(load("d", running=16, fetch_token_s=1e-3), 0.0)
    slower = pool.choose(request(4001, prefilled=250), 0.0)
    assert slower is not None
    assert slower.cost_s - choice.cost_s == pytest.approx(4000 * 1e-3, rel=0.05)
    pool.report(load("d", running=16, fetch_token_s=1e-3, fetch_s=0.5), 0.0)
    still_slower = pool.choose(request(4001, prefilled=250), 0.0)
    assert still_slower is not None
    assert still_slower.cost_s - slower.cost_s == pytest.approx(0.5, rel=0.01)


def test_without_one_kind_of_workers_the_other_does_all() -> None:
    pool = make_pool("always")
    pool.leave("p")
    choice = pool.choose(request(4000), 0.0)
    assert choice is not None
    assert (choice.worker, choice.role, choice.reason) == ("d", "decode", "")
    pool = make_pool("never")
    pool.leave("d")
    choice = pool.choose(request(4000), 0.0)
    assert choice is not None
    assert (choice.worker, choice.role) == ("p", "prefill")


def test_a_change_of_roles_counts_at_once() -> None:
    pool = make_pool("always")
    pool.join(card("p", "both"), 0.0)
    choices = {pool.choose(request(4000, key=f"r:{number}"), 0.0) for number in range(3)}
    assert {choice.role for choice in choices if choice} <= {"both", "decode"}


def test_the_side_of_the_last_choice_is_kept_while_the_other_is_hardly_cheaper() -> None:
    disaggregation = Disaggregation("auto", margin=0.2)
    near = (1.0, 0.9 - HANDOVER_S, 0.0, 0)
    assert not disaggregation.weigh(*near).is_remote
    assert disaggregation.weigh(1.0, 0.5, 0.3, 0).is_remote
    disaggregation.note(Verdict(True, ""))
    assert disaggregation.weigh(*near).is_remote
    assert disaggregation.weigh(1.0, 1.19 - HANDOVER_S, 0.0, 0).is_remote
    assert not disaggregation.weigh(1.0, 1.21, 0.0, 0).is_remote


def test_the_way_of_the_blocks_counts() -> None:
    pool = make_pool()
    pool.report(load("d", running=16, fetch_token_s=1e-3), 0.0)
    choice = pool.choose(request(4000), 0.0)
    assert choice is not None
    assert choice.worker == "d"


def test_what_fills_no_block_cannot_move_and_stays_even_beside_many_that_decode() -> None:
    choice = make_pool(decoding=32).choose(request(15), 0.0)
    assert choice is not None
    assert choice.worker == "d"
    assert "fetch 0 tokens" in choice.reason


def test_blind_policies_keep_to_roles_too() -> None:
    sides = Sides(Disaggregation("auto"))
    sides.set_roles(0, frozenset({"prefill"}))
    assert list(sides.present(request(9), [0])) == [0]
    sides.set_roles(1, frozenset({"decode"}))
    sides.set_roles(2, frozenset({"both", "decode"}))
    assert list(sides.present(request(9), [0, 1, 2])) == [0, 2]
    assert list(sides.present(request(9, prefilled=0), [0, 1, 2])) == [1, 2]
    assert [sides.role(number) for number in range(3)] == ["prefill", "decode", "both"]
