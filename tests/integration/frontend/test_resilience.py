"""Workers lose messages, fail, fall silent; clients leave. Nothing is lost, nothing doubled, nothing left behind."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import anyio
import pytest

from bus.errors import QueueFull
from bus.messages.base import unpack_u32
from bus.messages.inference import Accepted
from bus.metrics import REGISTRY
from bus.subjects import ANY_WORKER
from bus.testing import MemoryBroker

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
ASK = [{"role": "user", "content": "What is Busway?"}]
CHAT = {"model": "tiny", "messages": ASK}
TEXT = "The quick brown fox jumps over the lazy dog."


def render(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


async def test_a_gap_brings_another_attempt_that_goes_on_where_the_text_was(stage: OpenStage) -> None:
    async with stage() as on:
        tokens = on.tokenizer.encode(TEXT).ids

        def lossy(job: Any) -> None:
            if job.attempt:
                on.worker.echo(job, TEXT)
            else:
                on.worker.say(job, tokens[:3])
                on.worker.say(job, tokens[1:3], at=1)
                on.worker.say(job, tokens[5:7], at=5)

        on.worker.script = lossy
        status, _, answer = await on.post("/v1/chat/completions", CHAT)
        first, second = on.worker.jobs
        await on.worker.wait_cancelled(first.ticket)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert unpack_u32(second.output).tolist() == tokens[:3]
    assert (second.attempt, second.request_id, second.sampling) == (1, first.request_id, first.sampling)


async def test_a_retryable_failure_is_tried_again_and_others_are_told(stage: OpenStage) -> None:
    async with stage() as on:

        def busy_first(job: Any) -> None:
            if job.attempt:
                on.worker.echo(job, TEXT)
            else:
                on.worker.say(job, failed=("engine_busy", True))

        on.worker.script = busy_first
        assert (await on.post("/v1/chat/completions", CHAT))[0] == 200
        on.worker.script = lambda job: on.worker.say(job, failed=("context_length_exceeded", False))
        status, _, answer = await on.post("/v1/chat/completions", CHAT | {"stream": True})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_attempts_end_and_the_stream_says_so(stage: OpenStage) -> None:
    async with stage(max_attempts=2) as on:
        on.worker.script = lambda job: on.worker.say(job, "Hi", failed=("engine_busy", True))
        status, headers, body = await on.post("/v1/chat/completions", CHAT | {"stream": True})
        assert len(on.worker.jobs) == 2
    *_, last = body.decode().strip().split("\n\n")
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "attempts_exhausted"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_worker_that_falls_silent_loses_its_requests_to_another(
    stage: OpenStage, stream: bool, tokenizer: Any, undisturbed: Any
) -> None:
    await undisturbed(partial(fall_silent, stage, stream, tokenizer), 0.1)


async def fall_silent(stage: OpenStage, stream: bool, tokenizer: Any) -> None:
    """A worker says three tokens and nothing more; the other one is there all the time."""
    async with stage(worker_timeout_s=0.4) as on, on.connect("second") as bus:
        tokens = on.tokenizer.encode(TEXT).ids

        def die_after_three(job: Any) -> None:
            on.worker.say(job, tokens[:3])
            on.worker.is_silent = True
            on.worker.takes_jobs = False

        on.worker.script = die_after_three
        other = type(on.worker)(bus, tokenizer, "w-other")
        other.script = lambda job: other.echo(job, TEXT)
        other.takes_jobs = False
        async with other.run(), anyio.create_task_group() as tasks:
            answers: list[Any] = []

            async def ask() -> None:
                answers.append(await on.post("/v1/chat/completions", CHAT | {"stream": stream}))

            tasks.start_soon(ask)
            while not on.worker.is_silent:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            other.takes_jobs = True
            await other.wait_jobs(1)
        status, _, answer = answers[0]
        assert status == 200
        if stream:
            deltas = [json.loads(line[6:]) for line in answer.decode().split("\n\n")[:-2]]
            assert "".join(event["choices"][0]["delta"].get("content", "") for event in deltas) == TEXT
        else:
            assert answer["choices"][0]["message"]["content"] == TEXT
        assert other.jobs[0].attempt == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot(stage: OpenStage, stream: bool) -> None:
    async with stage() as on:
        connection = await on.send(render(CHAT | {"stream": stream}))
        job = await on.worker.wait_jobs(1)
        on.worker.say(job, "The quick")
        if stream:
            await connection.receive()
        else:
            await on.bus.flush()
        await connection.aclose()
        await on.worker.wait_cancelled(job.ticket)
        assert REGISTRY.get_sample_value("busway_frontend_requests_in_flight") == 0


async def test_a_client_that_leaves_before_a_worker_accepts_is_cancelled_then(
    stage: OpenStage, eventually: Any
) -> None:
    async with stage() as on:
        connection = await on.send(render(CHAT))
        job = await on.worker.wait_jobs(1)
        await connection.aclose()
        await eventually(lambda: REGISTRY.get_sample_value("busway_frontend_requests_in_flight") == 0)
        assert on.worker.cancelled == []
        for _ in range(5):
            on.worker.send(job.frontend, accepted=[Accepted(job.ticket)])
            on.worker.say(job, "The quick")
        await on.worker.wait_cancelled(job.ticket)
        await on.post("/v1/models", {})
        assert on.worker.cancelled == [job.ticket]


async def test_nobody_accepts_in_time(stage: OpenStage) -> None:
    async with stage(accept_timeout_s=0.3) as on:
        status, headers, answer = await on.post("/v1/chat/completions", CHAT | {"stream": True})
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "no_worker", "1")


async def test_one_request_too_many_is_429(stage: OpenStage) -> None:
    async with stage(max_requests=1) as on:
        first = await on.send(render(CHAT))
        await on.worker.wait_jobs(1)
        status, headers, answer = await on.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["type"], headers["retry-after"]) == (429, "rate_limit_error", "1")
        await first.aclose()


async def test_a_full_queue_is_429(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.takes_jobs = False
        subject = on.bus.subjects.work("tiny", "both", ANY_WORKER, "standard")

        async def fill() -> None:
            while True:
                await on.bus.append(subject, b"")

        with pytest.raises(QueueFull):
            await fill()
        status, headers, answer = await on.post("/v1/chat/completions", CHAT)
    assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")


async def test_who_would_wait_too_long_is_told_so_at_once(stage: OpenStage) -> None:
    async with stage(max_queue_s=0.1) as on, anyio.create_task_group() as tasks:
        on.worker.takes_jobs = False
        for _ in range(8):
            tasks.start_soon(on.post, "/v1/chat/completions", CHAT)
        with anyio.fail_after(30):
            while True:
                request = CHAT | {"busway": {"timeout_s": 0.3}}
                status, headers, answer = await on.post("/v1/chat/completions", request)
                if status == 429:
                    break
        assert answer["error"]["code"] == "overloaded"
        assert int(headers["retry-after"]) >= 1
        batch = CHAT | {"busway": {"timeout_s": 0.3, "latency_class": "batch"}}
        assert (await on.post("/v1/chat/completions", batch))[0] == 408, "another class waits in another queue"
        tasks.cancel_scope.cancel()


async def test_a_broker_that_lost_everything_gets_waiting_requests_again(stage: OpenStage) -> None:
    broker = MemoryBroker()
    async with stage(broker=broker) as on, anyio.create_task_group() as tasks:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await on.post("/v1/chat/completions", CHAT))

        tasks.start_soon(ask)
        lost = await on.worker.wait_jobs(1)
        on.worker.script = lambda job: on.worker.echo(job, TEXT)
        await broker.restart()
        job = await on.worker.wait_jobs(2)
        assert (job.attempt, job.request_id) == (1, lost.request_id)
    assert answers[0][2]["choices"][0]["message"]["content"] == TEXT


async def test_an_answer_that_has_begun_is_not_refused_any_more(stage: OpenStage) -> None:
    """A migrated request met a full queue, and the client a refusal in the middle of its answer."""
    async with stage() as on:
        tokens = on.tokenizer.encode(TEXT).ids

        def refuse_in_the_middle(job: Any) -> None:
            if job.attempt:
                on.worker.echo(job, TEXT)
            else:
                on.worker.say(job, tokens[:3], failed=("overloaded", False))

        on.worker.script = refuse_in_the_middle
        status, _, answer = await on.post("/v1/chat/completions", CHAT)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
        on.worker.script = lambda job: on.worker.say(job, failed=("overloaded", False))
        status, _, answer = await on.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (429, "overloaded")


async def test_an_end_that_got_lost_is_missed_after_a_while(stage: OpenStage) -> None:
    """The last batch never arrives, and nothing follows for this request: only the next number tells."""
    async with stage(worker_timeout_s=1.5) as on:
        tokens = on.tokenizer.encode(TEXT).ids

        def lose_the_end(job: Any) -> None:
            if job.attempt:
                on.worker.echo(job, TEXT)
                return
            on.worker.say(job, tokens[:-1])
            on.worker._seqs[job.frontend] += 1
            on.worker.send(job.frontend)

        on.worker.script = lose_the_end
        status, _, answer = await on.post("/v1/chat/completions", CHAT)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)


async def test_hostile_messages_harm_nobody(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = lambda job: on.worker.echo(job, TEXT)
        out = on.bus.subjects.out(on.frontend.name, "w-evil")
        registry = on.bus.bucket("REG")
        for data in (
            b"",
            b"\xff" * 50,
            b"\x91" * 10_000,
            b"{}",
            b"[" * 100_000,
            b"\x97\xa6w-evil\x00\xc4\x01a\xc4\x00\xc4\x00\x90\x90",
        ):
            on.worker.bus.publish(out, data)
            on.worker.bus.publish(on.bus.subjects.load("tiny", "w-evil"), data)
            await registry.put("model.evil", data)
            await registry.put("worker.w-evil", data)
        on.worker.bus.publish(out, b"\x93\xa8w-spoof!\x00\xc4\x00")
        status, _, answer = await on.post("/v1/chat/completions", CHAT)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
