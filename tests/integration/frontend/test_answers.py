"""Clients get the worker's text in the shapes of OpenAI's API."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import openai
import pytest

from bus.codec import codec
from bus.messages.inference import UsageBatch
from bus.protocol import ConsumerSpec, Delivery

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
ASK = [{"role": "user", "content": "What is Busway?"}]
LOREM = 'The quick brown fox jumps over the lazy dog. 你好 😀 "quotes" and it goes on, and on, and on. What is Busway?'


def client_of(stage: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)


async def test_openai_python_streams_a_chat(stage: OpenStage) -> None:
    async with stage() as on, client_of(on) as client:
        on.worker.script = on.worker.echo
        stream = await client.chat.completions.create(
            model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *texts, last, usage = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == LOREM
    assert last.choices[0].finish_reason == "stop"
    num_tokens = len(on.tokenizer.encode(LOREM).ids)
    assert (usage.usage.completion_tokens, usage.usage.prompt_tokens_details.cached_tokens) == (num_tokens, 3)


async def test_openai_python_gets_whole_answers_and_models(stage: OpenStage) -> None:
    async with stage() as on, client_of(on) as client:
        on.worker.script = on.worker.echo
        chat = await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=4, temperature=0)
        completion = await client.completions.create(model="tiny", prompt="The quick", seed=5)
        models = await client.models.list()
        shown = await client.models.retrieve("tiny")
        with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'"):
            await client.chat.completions.create(model="tinny", messages=ASK)
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 4
    assert completion.choices[0].text == LOREM
    assert [model.id for model in models.data] == ["tiny"]
    assert shown.id == "tiny"
    jobs = on.worker.jobs
    assert (jobs[0].sampling.temperature, jobs[0].stopping.max_tokens) == (0.0, 4)
    assert jobs[1].sampling.seed == 5
    assert jobs[0].sampling.seed not in (0, 5)


async def test_a_stop_string_ends_the_stream_and_frees_the_worker(stage: OpenStage) -> None:
    async with stage() as on, client_of(on) as client:

        def say_all(job: Any) -> None:
            for offset, token in enumerate(on.tokenizer.encode(LOREM).ids):
                on.worker.say(job, [token], at=offset)

        on.worker.script = say_all
        stream = await client.chat.completions.create(model="tiny", messages=ASK, stream=True, stop=["lazy dog"])
        chunks = [chunk async for chunk in stream]
        await on.worker.wait_cancelled(on.worker.jobs[0].ticket)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "The quick brown fox jumps over the "
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_log_probabilities_reach_the_client(stage: OpenStage) -> None:
    async with stage() as on, client_of(on) as client:
        on.worker.script = lambda job: on.worker.say(job, "The bus", reason="stop", logprobs=True)
        chat = await client.chat.completions.create(model="tiny", messages=ASK, logprobs=True, top_logprobs=2)
        completion = await client.completions.create(model="tiny", prompt="x", logprobs=2)
    told = chat.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert b"".join(bytes(entry.bytes or []) for entry in told.content) == b"The bus"
    assert len(told.content[0].top_logprobs) == 2
    legacy = completion.choices[0].logprobs
    assert legacy is not None
    assert "".join(legacy.tokens or []) == "The bus"
    assert (legacy.text_offset or [1])[0] == 0


async def test_every_answer_has_a_request_id_and_unknown_parameters_are_named(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = on.worker.echo
        body = {"model": "tiny", "messages": ASK, "frobs": "u", "x\r\ny: z": 1, "qua": {}}
        status, headers, answer = await on.post("/v1/chat/completions", body, "X-Request-Id: mine-1")
        _, other, _ = await on.get("/nothing")
    assert status == 200
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-busway-ignored-params"] == "frobs,x_y_z,qua"
    assert answer["id"].startswith("chatcmpl-")
    assert len(other["x-request-id"]) == 32


async def test_http_1_0_clients_get_plain_events(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = on.worker.echo
        body = json.dumps({"model": "tiny", "messages": ASK, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        status, headers, answer = await on.exchange(head.encode() + body)
    assert status == 200
    assert "transfer-encoding" not in headers
    assert answer.endswith(b"data: [DONE]\n\n")


async def test_usage_is_stored_once_per_request(stage: OpenStage, collect: Any) -> None:
    async with stage() as on, on.connect("meter") as meter:
        on.worker.script = on.worker.echo
        for _ in range(3):
            await on.post("/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 2})
        found = collect()

        def keep(delivery: Delivery) -> None:
            delivery.ack()
            for usage in codec(UsageBatch).decode(delivery.payload).requests:
                found(usage)

        spec = ConsumerSpec(stream="USAGE", name="meter", filter_subject=on.bus.subjects.usage("*", "*"))
        async with meter.pull(spec, keep) as pull:
            pull.grant(10)
            usages = await found.wait(3)
    assert {usage.output_tokens for usage in usages} == {2}
    assert len({usage.request_id for usage in usages}) == 3
    assert {usage.finish_reason for usage in usages} == {"length"}


async def test_ready_says_why_not(stage: OpenStage) -> None:
    async with stage(worker_timeout_s=0.3) as on:
        await on.wait_ready()
        assert (await on.get("/live"))[2] == {"status": "live"}
        on.worker.is_silent = True
        status = 200
        while status == 200:
            status, headers, body = await on.get("/ready")
        assert "no live worker serves tiny" in body["reason"]
        assert headers["retry-after"] == "1"
        refused, more, answer = await on.post("/v1/chat/completions", {"model": "tiny", "messages": ASK})
        assert (refused, answer["error"]["code"], more["retry-after"]) == (503, "no_worker", "1")


async def test_metrics_are_prometheus_text(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = on.worker.echo
        await on.post("/v1/chat/completions", {"model": "tiny", "messages": ASK})
        status, headers, body = await on.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert b"busway_frontend_inter_token_seconds_bucket" in body


async def test_a_stream_shows_life_while_its_prompt_is_computed(stage: OpenStage) -> None:
    async with stage(keep_alive_s=0.05) as on:
        data = json.dumps({"model": "tiny", "messages": ASK, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        async with await on.send(head.encode() + data) as stream:
            job = await on.worker.wait_jobs(1)
            with anyio.move_on_after(0.15) as unaccepted:
                await stream.receive()
            on.worker.say(job, [])
            answer = b""
            with anyio.fail_after(30):
                while answer.count(b": keep-alive\n\n") < 2:
                    answer += await stream.receive()
            on.worker.echo(job, "The bus")
            with anyio.fail_after(30):
                while b"[DONE]" not in answer:
                    answer += await stream.receive()
    assert unaccepted.cancelled_caught, "an error may still be a status"
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"openai-processing-ms: " in answer
    assert answer.index(b": keep-alive") < answer.index(b'"role":"assistant"')


async def test_unknown_parameters_are_errors_where_configured_so(stage: OpenStage) -> None:
    async with stage(strict_params=True) as on:
        on.worker.script = on.worker.echo
        body = {
            "model": "tiny",
            "messages": ASK,
            "user": "u",
            "store": True,
            "verbosity": "low",
            "metadata": {"a": "b"},
        }
        fine, headers, _ = await on.post("/v1/chat/completions", body)
        status, _, answer = await on.post("/v1/chat/completions", body | {"frobs": 1})
        explained = await on.post("/v1/explain", body, "X-Busway-Session: s")
        refused = await on.post("/v1/explain", body | {"frobs": 1})
        batch = {"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h", "frobs": 1}
        unbatched = await on.post("/v1/batches", batch)
    assert (fine, status, answer["error"]["param"]) == (200, 400, "frobs")
    assert (explained[0], explained[2]["session"]) == (200, "s")
    assert (refused[0], refused[2]["error"]["param"]) == (400, "frobs")
    assert (unbatched[0], unbatched[2]["error"]["param"]) == (400, "frobs")
    assert "x-busway-ignored-params" not in headers
    assert int(headers["openai-processing-ms"]) < 5000
