"""With a router alive, requests go to it; its refusals are answered, and when it vanishes nothing waits for it."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from bus.codec import codec, encode
from bus.messages.fleet import RouterCard
from bus.messages.inference import LATENCY_CLASSES, Failed, GenerateJob, StepBatch
from bus.metrics import REGISTRY
from bus.protocol import Bus, ConsumerSpec, Delivery
from bus.registry import keep_card

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is Busway?"}]}


class FakeRouter:
    """Takes requests; what becomes of them is the test's business."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.subjects: list[str] = []
        self.jobs: list[GenerateJob] = []
        self.script: Callable[[Delivery, GenerateJob], None] = lambda delivery, job: None
        self._changed = anyio.Event()

    def refuse(self, delivery: Delivery, job: GenerateJob) -> None:
        failed = Failed(job.ticket, "overloaded", "All workers are busy.", False, 12.0)
        batch = StepBatch(worker="r-1", seq=len(self.jobs) - 1, failed=[failed])
        self.bus.publish(self.bus.subjects.out(job.frontend, "r-1"), encode(batch))
        delivery.ack()

    @asynccontextmanager
    async def run(self, *models: str) -> AsyncIterator[None]:
        card = RouterCard(router="r-1", models=list(models), host="h", pid=1, version="0", started_at=0.0)
        consumers = [
            ConsumerSpec(stream="REQ", name=f"req-tiny-{name}", filter_subject=self.bus.subjects.req("tiny", name, "*"))
            for name in LATENCY_CLASSES
        ]
        async with AsyncExitStack() as stack:
            for consumer in consumers:
                await stack.enter_async_context(self._pull(consumer))
            await stack.enter_async_context(keep_card(self.bus, "router.r-1", card))
            yield

    @asynccontextmanager
    async def _pull(self, consumer: ConsumerSpec) -> AsyncIterator[None]:
        async with self.bus.pull(consumer, self._on_delivery) as pull:
            pull.grant(100)
            yield

    def _on_delivery(self, delivery: Delivery) -> None:
        job = codec(GenerateJob).decode(delivery.payload)
        self.subjects.append(delivery.subject)
        self.jobs.append(job)
        self._changed.set()
        self.script(delivery, job)

    async def wait_jobs(self, count: int) -> None:
        with anyio.fail_after(30):
            while len(self.jobs) < count:
                self._changed = anyio.Event()
                await self._changed.wait()


@asynccontextmanager
async def opened(stage: OpenStage, *models: str) -> AsyncIterator[tuple[Any, FakeRouter, anyio.CancelScope]]:
    """A stage with a router that the frontend knows; cancelling the scope ends the router."""
    async with stage() as on, on.connect("r-1") as bus, anyio.create_task_group() as tasks:
        router = FakeRouter(bus)
        scope = anyio.CancelScope()
        ready = anyio.Event()

        async def run() -> None:
            with scope:
                async with router.run(*models):
                    await bus.flush()
                    ready.set()
                    await anyio.sleep_forever()

        tasks.start_soon(run)
        await ready.wait()
        await on.bus.flush()
        yield on, router, scope
        scope.cancel()


async def test_a_router_gets_the_requests_with_class_tenant_and_session(stage: OpenStage) -> None:
    async with opened(stage) as (on, router, _):
        on.worker.script = on.worker.echo

        def place(delivery: Delivery, job: GenerateJob) -> None:
            on.worker.echo(job)
            delivery.ack()

        router.script = place
        details = {"service_tier": "priority", "prompt_cache_key": "conversation-1"}
        assert (await on.post("/v1/chat/completions", CHAT | details))[0] == 200
        assert (await on.post("/v1/chat/completions", CHAT | {"service_tier": "flex"}))[0] == 200
        assert (await on.post("/v1/chat/completions", CHAT))[0] == 200
        assert on.worker.jobs == []
    assert router.subjects == [f"busway.req.v1.tiny.{name}.default" for name in ("interactive", "batch", "standard")]
    assert [(job.latency_class, job.session) for job in router.jobs] == [
        ("interactive", "conversation-1"),
        ("batch", ""),
        ("standard", ""),
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_answered_with_429_and_when_to_come_again(stage: OpenStage, stream: bool) -> None:
    async with opened(stage) as (on, router, _):
        router.script = router.refuse
        status, headers, answer = await on.post("/v1/chat/completions", CHAT | {"stream": stream})
        assert len(router.jobs) == 1
    assert (status, headers["retry-after"], answer["error"]["code"]) == (429, "12", "overloaded")


async def test_requests_go_on_without_the_router_when_it_vanishes(stage: OpenStage) -> None:
    retries = {"reason": "router_lost"}
    before = REGISTRY.get_sample_value("busway_frontend_retries_total", retries) or 0.0
    async with opened(stage) as (on, router, scope), anyio.create_task_group() as tasks:
        on.worker.script = on.worker.echo
        answers = []

        async def ask() -> None:
            answers.append((await on.post("/v1/chat/completions", CHAT))[0])

        for _ in range(3):
            tasks.start_soon(ask)
        await router.wait_jobs(3)
        scope.cancel()
        await on.worker.wait_jobs(3)
        assert {job.attempt for job in on.worker.jobs} == {1}
        tasks.start_soon(ask)
        await on.worker.wait_jobs(4)
        assert on.worker.jobs[-1].attempt == 0
    assert answers == [200] * 4
    assert REGISTRY.get_sample_value("busway_frontend_retries_total", retries) == before + 3


async def test_models_that_no_router_takes_go_to_any_worker(stage: OpenStage) -> None:
    async with opened(stage, "another") as (on, router, _):
        on.worker.script = on.worker.echo
        assert (await on.post("/v1/chat/completions", CHAT))[0] == 200
        assert (len(on.worker.jobs), router.jobs) == (1, [])


async def test_a_request_that_a_worker_accepted_does_not_care_about_routers(stage: OpenStage) -> None:
    async with opened(stage) as (on, router, scope), anyio.create_task_group() as tasks:
        router.script = lambda delivery, job: (on.worker.say(job, "The quick"), delivery.ack())[0]
        answers = []

        async def ask() -> None:
            answers.append((await on.post("/v1/chat/completions", CHAT | {"stream": True}))[2])

        tasks.start_soon(ask)
        await router.wait_jobs(1)
        scope.cancel()
        await on.bus.flush()
        on.worker.say(router.jobs[0], " brown", at=len(on.tokenizer.encode("The quick").ids), reason="stop")
    assert on.worker.jobs == []
    assert json.loads(answers[0].decode().split("\n\n")[0].removeprefix("data: "))["model"] == "tiny"
