"""Prefilled by one worker, decoded by another: equal tokens, nothing computed twice, no block kept for nobody."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from bus.codec import codec, encode
from bus.config import MockConfig
from bus.messages.inference import SetRoles
from bus.metrics import REGISTRY
from components.engines import StepStats
from components.engines.batching.scheduler import Plan
from components.engines.mock.engine import MockEngine

pytestmark = pytest.mark.anyio
Text = Callable[[list[int], int], list[int]]
LENGTHS = (1, 3, 15, 16, 17, 31, 32, 33, 500, 2048, 2049, 4000)
MOCK = {"block_size": 16, "num_blocks": 2048, "max_batch_tokens": 512}


def prompt(length: int) -> list[int]:
    return [2 + (length * 7 + position) % 2000 for position in range(length)]


def all_free(*workers: Any) -> bool:
    return all(worker.engine.load().free_blocks == worker.engine.spec.num_blocks for worker in workers)


class CountingEngine(MockEngine):
    """Adds up the prompt tokens that it computes."""

    def __init__(self, config: MockConfig) -> None:
        super().__init__(config, model="tiny", vocab_size=2048)
        self.prefill_tokens = 0

    def _price(self, plan: Plan) -> StepStats:
        stats = super()._price(plan)
        self.prefill_tokens += stats.prefill_tokens
        return stats


async def set_roles(stage: Any, worker: Any, *roles: Any) -> None:
    """Change a worker's roles and return when it says that it did."""
    answer = await stage.owner.bus.request(
        stage.owner.bus.subjects.ctl(worker.name), encode(SetRoles(roles=list(roles))), timeout_s=10
    )
    assert sorted(codec(SetRoles).decode(answer.payload).roles) == sorted(roles)


async def test_each_part_is_computed_by_its_worker(stage: Any, text: Text, eventually: Any) -> None:
    prefill = await stage.add_worker(roles=("prefill",), mock=MOCK, make_engine=CountingEngine)
    decode = await stage.add_worker(roles=("decode",), mock=MOCK, make_engine=CountingEngine)
    owner = stage.owner
    for ticket, length in enumerate(LENGTHS):
        await owner.send(ticket, prompt(length), max_tokens=20)
    await owner.wait_ended(*range(len(LENGTHS)))
    assert not owner.failed
    for ticket, length in enumerate(LENGTHS):
        assert owner.texts[ticket] == text(prompt(length), 20)
        assert (owner.accepted[ticket], owner.sources[ticket]) == (decode.name, prefill.name)
        assert owner.finished[ticket].num_tokens == 20
    await eventually(lambda: all_free(prefill, decode))
    prefill.engine._pool.check([])
    decode.engine._pool.check([])
    num_prompts = len(LENGTHS)  # a last token that is alone in its step counts as decoding
    assert sum(LENGTHS) - num_prompts <= prefill.engine.prefill_tokens <= sum(LENGTHS)
    rest = sum(length % 16 + 1 for length in LENGTHS if length % 16)
    assert rest - num_prompts <= decode.engine.prefill_tokens <= rest, "what was transferred is not computed again"


async def test_one_token_and_embeddings_are_not_handed_over(stage: Any, text: Text) -> None:
    prefill = await stage.add_worker(roles=("prefill",), mock=MOCK)
    await stage.add_worker(roles=("decode",), mock=MOCK)
    await stage.owner.send(1, prompt(40), max_tokens=1)
    await stage.owner.send(2, prompt(40), task="embed")
    await stage.owner.wait_ended(1, 2)
    assert stage.owner.accepted == {1: prefill.name, 2: prefill.name}
    assert stage.owner.finished[1].reason == "length"


@pytest.mark.parametrize("roles", [("prefill",), ("decode",)])
async def test_a_worker_without_the_other_kind_does_it_all(
    nats_stage: Any, text: Text, roles: Any, eventually: Any
) -> None:
    worker = await nats_stage.add_worker(roles=roles, mock=MOCK)
    await nats_stage.owner.send(1, prompt(100), max_tokens=9)
    await nats_stage.owner.wait_ended(1)
    assert nats_stage.owner.texts[1] == text(prompt(100), 9)
    await eventually(lambda: all_free(worker))


async def test_blocks_that_the_decode_worker_has_are_not_read(stage: Any, text: Text, eventually: Any) -> None:
    prefill = await stage.add_worker(roles=("prefill",), mock=MOCK)
    decode = await stage.add_worker(roles=("decode",), mock=MOCK)
    for ticket in range(3):
        await stage.owner.send(ticket, prompt(100 + 16 * ticket // 2), max_tokens=9)
        await stage.owner.wait_ended(ticket)
        assert stage.owner.texts[ticket] == text(prompt(100 + 16 * ticket // 2), 9)
    await eventually(lambda: all_free(prefill, decode))


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"busway_{name}_total", labels) or 0.0


async def test_blocks_of_a_long_prompt_are_on_their_way_while_the_rest_is_computed(
    stage: Any, text: Text, eventually: Any
) -> None:
    slow = {**MOCK, "prefill_token_s": 0.00004}
    prefill = await stage.add_worker(roles=("prefill",), mock=slow, make_engine=CountingEngine)
    decode = await stage.add_worker(roles=("decode",), mock=MOCK, make_engine=CountingEngine)
    early, blocks = counted("worker_fetches", outcome="early"), counted("transfer_blocks")
    read = counted("worker_fetches", outcome="read")
    await stage.owner.send(1, prompt(4000), max_tokens=20)
    await stage.owner.wait_ended(1)
    assert stage.owner.texts[1] == text(prompt(4000), 20)
    assert counted("worker_fetches", outcome="early") - early >= 1
    assert counted("worker_fetches", outcome="read") - read == 1, "what was computed last"
    num_blocks = 4000 // 16
    assert num_blocks <= counted("transfer_blocks") - blocks <= 2 * num_blocks, "again at most what was on its way"
    assert decode.engine.prefill_tokens <= 1
    await eventually(lambda: all_free(prefill, decode))
    for worker in (prefill, decode):
        worker.engine._pool.check([])


@pytest.mark.parametrize("order", [("prefill", "decode"), ("decode", "prefill")])
async def test_workers_connect_before_a_request_needs_it(stage: Any, eventually: Any, order: Any) -> None:
    released, jobs = counted("transfer_leases", outcome="released"), counted("worker_jobs", outcome="early")
    workers = [await stage.add_worker(roles=(role,), mock=MOCK) for role in order]
    await eventually(lambda: counted("transfer_leases", outcome="released") > released)
    await set_roles(stage, workers[order.index("decode")], "both")
    await set_roles(stage, workers[order.index("decode")], "decode")
    await eventually(lambda: counted("worker_jobs", outcome="early") >= jobs + 1)
    await eventually(lambda: all_free(*workers))


async def test_an_early_offer_is_over_with_its_sequence_and_no_owner_hears_of_it(stage: Any, eventually: Any) -> None:
    slow = {**MOCK, "prefill_token_s": 0.0005}
    prefill = await stage.add_worker(roles=("prefill",), mock=slow)
    decode = await stage.add_worker(roles=("decode",), mock={**MOCK, "num_blocks": 8, "max_model_len": 128})
    early = counted("worker_jobs", outcome="early") + counted("worker_jobs", outcome="refused")
    await stage.owner.send(1, prompt(4000), max_tokens=20)
    await eventually(
        lambda: counted("worker_jobs", outcome="early") + counted("worker_jobs", outcome="refused") > early
    )
    stage.owner.cancel(prefill.name, 1)
    await eventually(lambda: all_free(prefill, decode))
    assert not stage.owner.failed
    assert not stage.owner.finished


async def test_an_owner_hears_at_once_of_a_handover_that_is_refused_and_the_blocks_return(
    stage: Any, eventually: Any
) -> None:
    """It heard nothing until the lease of the blocks ended, after ten seconds."""
    prefill = await stage.add_worker(roles=("prefill",), mock=MOCK)
    decode = await stage.add_worker(roles=("decode",), mock={**MOCK, "num_blocks": 8, "max_model_len": 128})
    released = counted("worker_handovers", outcome="released")
    await stage.owner.send(1, prompt(300), max_tokens=20)
    await stage.owner.wait_ended(1)
    failed = stage.owner.failed[1]
    assert (failed.code, failed.is_retryable) == ("context_length_exceeded", False)
    assert (stage.owner.accepted[1], stage.owner.sources[1]) == (decode.name, prefill.name)
    await eventually(lambda: all_free(prefill, decode))
    assert counted("worker_handovers", outcome="released") == released + 1


async def test_an_owner_hears_of_a_handover_that_nobody_takes_and_the_blocks_return(
    nats_stage: Any, eventually: Any
) -> None:
    stage = nats_stage
    decode = await stage.add_worker(roles=("decode",), mock={**MOCK, "step_base_s": 0.01}, slots=1)
    await stage.owner.send(1, prompt(64), max_tokens=4000 - 64)
    await stage.owner.wait(lambda: 1 in stage.owner.accepted)
    stage.lease_s = 0.5
    prefill = await stage.add_worker(roles=("prefill",), mock=MOCK)
    await stage.owner.send(2, prompt(300), max_tokens=30)
    await stage.owner.wait_ended(2)
    failed = stage.owner.failed[2]
    assert (failed.code, failed.is_retryable) == ("handover_lost", True)
    await eventually(lambda: all_free(prefill))
    stage.owner.cancel(decode.name, 1)


async def test_a_handover_that_comes_back_goes_on_where_it_was_prefilled(
    nats_stage: Any, text: Text, eventually: Any
) -> None:
    stage, owner = nats_stage, nats_stage.owner
    prefill = await stage.add_worker(roles=("prefill",), mock=MOCK, make_engine=CountingEngine)
    decode = await stage.add_worker(roles=("decode",), mock={**MOCK, "step_base_s": 0.01}, slots=1)
    await owner.send(1, prompt(64), max_tokens=4000 - 64)
    await owner.wait(lambda: owner.accepted.get(1) == decode.name and len(owner.texts[1]) > 2)
    await owner.send(2, prompt(300), max_tokens=30)
    await owner.wait(lambda: len(owner.texts[2]) == 1)  # it waits for the one slot of the decode worker
    decode.scope.cancel()
    await decode.ended.wait()
    await owner.wait(lambda: 2 in owner.finished or 2 in owner.failed)
    assert owner.texts[2] == text(prompt(300), 30)
    assert owner.accepted[2] == prefill.name
    assert prefill.engine.prefill_tokens < 64 + 300 + 16, "what is in its cache is not computed again"
    await eventually(lambda: all_free(prefill))


async def test_roles_change_under_load_and_nothing_is_lost(nats_stage: Any, text: Text, eventually: Any) -> None:
    stage, owner = nats_stage, nats_stage.owner
    workers = [await stage.add_worker(roles=(role,), mock=MOCK) for role in ("prefill", "decode", "both")]
    num_tickets, count = 90, 24
    kinds: list[tuple[Any, ...]] = [("decode",), ("prefill",), ("both",), ("prefill", "decode")]

    async def load() -> None:
        for ticket in range(num_tickets):
            await owner.send(ticket, prompt(20 + ticket * 3), max_tokens=count)
            if ticket >= 16:
                await owner.wait_ended(ticket - 16)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load)
        for number in range(30):
            await set_roles(stage, workers[number % 3], *kinds[number % 4])
    await owner.wait_ended(*range(num_tickets))
    lost = [ticket for ticket, failed in owner.failed.items() if not failed.is_retryable]
    assert not lost
    for ticket in range(num_tickets):
        if ticket not in owner.failed:
            assert owner.texts[ticket] == text(prompt(20 + ticket * 3), count)
    assert not owner.failed
    await eventually(lambda: all_free(*workers))
    for worker in workers:
        worker.engine._pool.check([])
