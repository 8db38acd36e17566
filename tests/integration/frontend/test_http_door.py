"""Whatever comes over HTTP is answered with the right status in OpenAI's envelope, and the next request is served."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is Busway?"}]}
PATH = "/v1/chat/completions"


async def test_wrong_requests_get_their_status(stage: OpenStage) -> None:
    async with stage() as on:
        for path, body, expected, code, param in [
            (PATH, b"{", 400, "malformed", None),
            (PATH, b"", 400, "malformed", None),
            (PATH, b'{"messages":' + b"[" * 100_000, 400, "invalid_request", "messages[0]"),
            (PATH, b'{"tools":' + b'{"a":' * 100_000, 400, "invalid_request", "tools"),
            (PATH, b"[" + b"[]," * 350_000 + b"[]]", 400, "invalid_request", None),
            (PATH, CHAT | {"model": ""}, 400, "invalid_request", "model"),
            (PATH, CHAT | {"model": "../../etc/passwd"}, 404, "model_not_found", None),
            (PATH, CHAT | {"model": "x\r\ny"}, 404, "model_not_found", None),
            (PATH, CHAT | {"max_tokens": "5"}, 400, "invalid_request", "max_tokens"),
            (PATH, CHAT | {"max_tokens": 10**6}, 400, "context_length_exceeded", "messages"),
            (
                PATH,
                CHAT | {"messages": [{"role": "user", "content": "bus " * 20_000}]},
                400,
                "context_length_exceeded",
                "messages",
            ),
            ("/v1/completions", {"model": "tiny", "prompt": ["a", 1]}, 400, "invalid_request", "prompt.[1]"),
            ("/v1/completions", {"model": "tiny", "prompt": "a", "suffix": "b"}, 400, "invalid_request", "suffix"),
            ("/v1/nothing", {}, 404, "not_found", None),
            ("/v1/models", {}, 405, "method_not_allowed", None),
        ]:
            status, headers, answer = await on.post(path, body)
            assert status == expected, (body, answer)
            assert answer["error"]["code"] == code, answer
            assert answer["error"]["param"] == param, answer
            assert headers["content-type"] == "application/json"
            assert "x-request-id" in headers
        assert on.worker.jobs == []


async def test_methods_and_models(stage: OpenStage) -> None:
    async with stage() as on:
        status, headers, _ = await on.get(PATH)
        assert (status, headers["allow"]) == (405, "POST")
        status, headers, body = await on.get("/v1/models", "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["content-length"]) > 50
        assert (await on.get("/v1/models/none"))[2]["error"]["code"] == "model_not_found"
        assert (await on.get("/v1/models/tiny?x=1"))[2]["max_model_len"] == 512
        assert (await on.get("/%zz%00"))[0] in (400, 404)


async def test_media_types(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = on.worker.echo
        for media_type, expected in [
            ("application/json; charset=utf-8", 200),
            ("application/vnd.api+json", 200),
            ("application/x-www-form-urlencoded", 415),
            ("multipart/form-data; boundary=x", 415),
        ]:
            assert (await on.post(PATH, CHAT, f"Content-Type: {media_type}"))[0] == expected
        for encoding, expected in [("identity", 200), ("gzip", 415)]:
            assert (await on.post(PATH, CHAT, f"Content-Encoding: {encoding}"))[0] == expected


async def test_large_bodies_are_refused_without_being_read(stage: OpenStage) -> None:
    async with stage(max_body_bytes=1000) as on:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n".encode()
        status, headers, body = await on.exchange(head + b"x" * 5000)
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
        assert headers["connection"] == "close"
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        status, _, body = await on.exchange(head + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 3)
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(200)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
        (b"GET /" + b"y" * 70_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
    ],
    ids=range(11),
)
async def test_bytes_that_are_no_request(stage: OpenStage, data: bytes, expected: int) -> None:
    async with stage() as on:
        status, headers, body = await on.exchange(data)
        assert status == expected
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert headers["connection"] == "close"
        assert (await on.get("/live"))[0] == 200


async def test_a_connection_serves_request_after_request(stage: OpenStage) -> None:
    async with stage() as on:
        on.worker.script = lambda job: on.worker.echo(job, "The quick brown fox")
        data = json.dumps(CHAT | {"stream": True}).encode()
        one = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        last = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        async with await on.send(one) as connection:
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += await connection.receive()
            # Pipelined: two more streams and a small request, sent at once, answered in order.
            await connection.send(one + one + last)
            with anyio.fail_after(30):
                try:
                    while True:
                        answer += await connection.receive()
                except anyio.EndOfStream:
                    pass
    assert answer.count(b"data: [DONE]") == 3
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.endswith(b'{"status":"live"}')


async def test_tokens_that_come_fast_share_an_event_but_the_first_does_not_wait(stage: OpenStage) -> None:
    async with stage(write_gap_s=0.05) as on:
        data = json.dumps(CHAT | {"stream": True, "ignore_eos": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        async with await on.send(head + data) as connection:
            job = await on.worker.wait_jobs(1)
            token = on.tokenizer.encode("fox").ids[0]
            for offset in range(4):
                on.worker.say(job, [token], at=offset)
            answer = b""
            with anyio.fail_after(30):
                while answer.count(b'"content":"f') < 2:
                    answer += await connection.receive()
    texts = [part.split(b'"')[0] for part in answer.split(b'"content":"') if part.startswith(b"f")]
    assert texts == [b"fo", b"fofofo"]


async def test_a_client_that_does_not_read_hurts_only_itself(stage: OpenStage) -> None:
    async with stage(slow_client_bytes=100_000, max_body_bytes=100_000, write_gap_s=0.0) as on:
        data = json.dumps(CHAT | {"stream": True, "ignore_eos": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        async with await on.send(head + data):
            job = await on.worker.wait_jobs(1)
            tokens = on.tokenizer.encode(" fox" * 4000).ids
            for step in range(5000):
                on.worker.say(job, tokens, at=step * len(tokens))
                await anyio.lowlevel.checkpoint()
                if job.ticket in on.worker.cancelled:
                    break
            await on.worker.wait_cancelled(job.ticket)
            on.worker.script = on.worker.echo
            assert (await on.post(PATH, CHAT))[0] == 200


async def test_a_client_that_reads_a_byte_at_a_time_hurts_only_itself(stage: OpenStage) -> None:
    async with stage(max_body_bytes=100_000, write_gap_s=0.0) as on:
        data = json.dumps(CHAT | {"stream": True, "ignore_eos": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        async with await on.send(head + data) as slow:
            job = await on.worker.wait_jobs(1)
            token = on.tokenizer.encode("fox").ids[0]
            on.worker.script = on.worker.echo
            read = b""
            for offset in range(40):
                on.worker.say(job, [token], at=offset)
                read += await slow.receive(1)
                with anyio.fail_after(30):
                    assert (await on.post(PATH, CHAT))[0] == 200
            assert read == b"HTTP/1.1 200 OK\r\ncontent-type: text/event"[:40]
            assert job.ticket not in on.worker.cancelled
            with anyio.fail_after(30):
                while read.count(b'"content":"f') < 2:
                    read += await slow.receive(1)


async def test_stopping_finishes_what_runs_and_refuses_what_is_new(stage: OpenStage) -> None:
    async with stage() as on:
        data = json.dumps(CHAT).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        async with await on.send(head + data) as running, await on.send(b"") as idle:
            job = await on.worker.wait_jobs(1)
            on.frontend.stop()
            with anyio.fail_after(30), pytest.raises(anyio.EndOfStream):
                await idle.receive()
            on.worker.echo(job, "The end.")
            answer = await running.receive()
            assert b"The end." in answer
