"""Plain NATS clients ask in text or JSON and are answered on their reply subject; on a real server."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from bus.metrics import REGISTRY

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
TEXT = "The quick brown fox jumps over the lazy dog."


async def test_one_message_answers_a_question(stage: OpenStage, nats_url: str, namespace: str) -> None:
    async with stage(url=nats_url, namespace=namespace) as on:
        on.worker.script = lambda job: on.worker.echo(job, TEXT)
        answers = []
        for question in (b"What is Busway?", b'{"prompt":"What is Busway?"}'):
            reply = await on.worker.bus.request(on.bus.subjects.ask("tiny", "acme"), question, timeout_s=30)
            answers.append(json.loads(reply.payload))
        status, _, over_http = await on.post(
            "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "What is Busway?"}]}
        )
    assert status == 200
    assert [answer["text"] for answer in answers] == [TEXT, TEXT]
    assert (answers[0]["done"], answers[0]["finish_reason"]) == (True, "stop")
    assert answers[0]["usage"] == over_http["usage"]
    assert {job.prompt for job in on.worker.jobs} == {on.worker.jobs[0].prompt}
    assert [job.tenant for job in on.worker.jobs] == ["acme", "acme", "default"]


async def test_a_stream_of_messages_on_a_subject_of_the_clients_choice(
    stage: OpenStage, nats_url: str, namespace: str, collect: Any
) -> None:
    async with stage(url=nats_url, namespace=namespace) as on:
        on.worker.script = lambda job: on.worker.echo(job, TEXT)
        got = collect()
        on.worker.bus.subscribe(f"inbox.{namespace}", got)
        question = {
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stop": "lazy",
            "reply_to": f"inbox.{namespace}",
        }
        await on.worker.bus.flush()
        on.worker.bus.publish(on.bus.subjects.ask("tiny", "acme"), json.dumps(question).encode())
        await got.until(lambda items: bool(items) and b'"done"' in items[-1].payload)
        *pieces, end = [json.loads(item.payload) for item in got.items]
    assert "".join(piece["text"] for piece in pieces) == "The quick brown fox jumps over the "
    assert end["finish_reason"] == "stop"


async def test_errors_are_messages_with_a_header(stage: OpenStage) -> None:
    async with stage() as on:
        for model, question, status, code in [
            ("tiny", b"", "400", "invalid_request"),
            ("tiny", b'{"prompt":5}', "400", "invalid_request"),
            ("tiny", b"{" * 100_000, "400", "malformed"),
            ("tiny", b'{"prompt":"a","max_tokens":0}', "400", "invalid_request"),
            ("tiny", b'{"prompt":"a","model":"other"}', "400", "invalid_request"),
            ("nobody", b"Hi", "404", "model_not_found"),
        ]:
            reply = await on.worker.bus.request(on.bus.subjects.ask(model, "acme"), question, timeout_s=30)
            assert json.loads(reply.payload)["error"]["code"] == code, question
            assert reply.headers is not None
            assert reply.headers["Nats-Service-Error-Code"] == status


@pytest.mark.parametrize("reply", ["", "$JS.API.STREAM.DELETE.X", "busway.ctl.v1.w-1", "a..b", "a.*", "a b"])
async def test_an_answer_that_nobody_may_hear_is_not_computed(stage: OpenStage, reply: str, eventually: Any) -> None:
    def refused() -> float:
        labels = {"endpoint": "ask", "status": "400"}
        return REGISTRY.get_sample_value("busway_frontend_requests_total", labels) or 0.0

    async with stage() as on:
        before = refused()
        question = json.dumps({"prompt": "Hi", "reply_to": reply}).encode()
        on.worker.bus.publish(on.bus.subjects.ask("tiny", "acme"), question)
        await eventually(lambda: refused() == before + 1)
        assert on.worker.jobs == []


async def test_questions_of_openai_are_answered_in_its_chunks(
    stage: OpenStage, nats_url: str, namespace: str, collect: Any
) -> None:
    async with stage(url=nats_url, namespace=namespace) as on:
        on.worker.script = lambda job: on.worker.echo(job, TEXT)
        subject, headers = on.bus.subjects.ask("tiny", "acme"), {"Busway-Format": "openai"}
        got = collect()
        on.worker.bus.subscribe(f"inbox.{namespace}", got)
        await on.worker.bus.flush()
        chat = {"messages": [{"role": "user", "content": "Hi"}], "n": 2, "busway": {"priority": 5}}
        for body in (chat | {"stream": True}, chat, {"prompt": "Hi", "max_tokens": 30}, {"prompt": ["a", "b"]}, {}):
            del got.items[:]
            question = json.dumps(body).encode()
            on.worker.bus.publish(subject, question, reply=f"inbox.{namespace}", headers=headers)
            if body.get("stream"):
                await got.until(lambda items: bool(items) and not items[-1].payload)
                *chunks, _ = [json.loads(item.payload or b"0") for item in got.items]
                assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
                for number in (0, 1):
                    mine = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == number]
                    assert "".join(delta.get("content") or "" for delta in mine) == TEXT
                continue
            await got.until(bool)
            answer = json.loads(got.items[0].payload)
            if "messages" in body:
                assert [choice["message"]["content"] for choice in answer["choices"]] == [TEXT, TEXT]
                assert on.worker.jobs[-1].hints.priority == 5
            elif body.get("prompt") == "Hi":
                assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", TEXT)
            else:
                assert answer["error"]["type"] == "invalid_request_error"
                assert got.items[0].headers["Nats-Service-Error-Code"] == "400"
