"""What a reviewer tries over HTTP: each is refused with its status, and the next request is served."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]

TARGETS = (
    "http://169.254.169.254/latest/meta-data/",
    "file:///etc/passwd",
    "http://a\\@127.0.0.1/",
    "http://0x7f.1/",
    "http://[::ffff:127.0.0.1]/",
    "http://localhost:4222/",
    "data:image/png;base64,iVBORw0KGgo=",
)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HI, "max_tokens": 5, **fields}


def media(url: str) -> list[tuple[str, dict[str, Any]]]:
    """The same picture in the words of each API."""
    return [
        (PATH, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])),
        (
            "/v1/responses",
            {"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        ),
        (
            "/v1/messages",
            {
                "model": "tiny",
                "max_tokens": 5,
                "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}],
            },
        ),
    ]


async def still_serves(on: Any) -> bool:
    status, _, answer = await on.post(PATH, chat())
    return status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length")


async def test_names_of_models_are_looked_up_and_join_no_path(stage: OpenStage) -> None:
    """Attacks 3 to 5: traversal, line breaks, wildcards and dots, in models and in what becomes part of a subject."""
    names = (
        "../../etc/passwd",
        "/etc/passwd",
        "tiny/../tiny",
        "tiny\r\nSUB > 1",
        "tiny\x00",
        "*",
        ">",
        "a.b",
        "x" * 5000,
    )
    async with stage() as on:
        on.worker.script = on.worker.echo
        for name in names:
            for path, body in ((PATH, chat(model=name)), ("/v1/embeddings", {"model": name, "input": "x"})):
                status, _, answer = await on.post(path, body)
                assert status in (400, 404), (name, path, status)
                assert "passwd: root" not in json.dumps(answer)
        for field in ("session", "cache_salt"):
            status, _, _ = await on.post(PATH, chat(busway={field: "a\r\nPUB x 0\r\n\r\n*.>"}))
            assert status in (200, 400)
        for path in ("/v1/files/..%2F..%2Fetc%2Fpasswd/content", "/v1/batches/%2A", "/v1/responses/%3E"):
            assert (await on.get(path))[0] in (400, 404)
        assert await still_serves(on)


@pytest.mark.parametrize("url", TARGETS)
async def test_nothing_that_a_client_names_is_fetched(stage: OpenStage, url: str) -> None:
    """Attacks 15 and 16: no API takes media, whatever the address; nothing is resolved, connected to or decoded."""
    async with stage() as on:
        on.worker.script = on.worker.echo
        for path, body in media(url):
            status, _, answer = await on.post(path, body)
            assert status == 400, (path, answer)
            assert "image" in json.dumps(answer)
        assert on.worker.jobs == []
        assert await still_serves(on)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 10**9, "n": 10**6},
        {"n": 10**6},
        {"max_tokens": -1},
        {"best_of": 10**6},
        {"logprobs": True, "top_logprobs": 10**6},
        {"stop": ["x"] * 10_000},
        {"logit_bias": {str(n): 1 for n in range(100_000)}},
        {"temperature": 1e308},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_amounts_are_bounded(stage: OpenStage, fields: dict[str, Any]) -> None:
    """Attack 14."""
    async with stage() as on:
        on.worker.script = on.worker.echo
        path = "/v1/completions" if "best_of" in fields else PATH
        body = {"model": "tiny", "prompt": "x", **fields} if "best_of" in fields else chat(**fields)
        assert (await on.post(path, body))[0] == 400
        assert on.worker.jobs == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"seed":1' + b"0" * 4000 + b"}",
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"tiny","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"tiny","messages":[' + b"[]," * 300_000 + b"[]]}",
        b'{"model":"tiny","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x04eval\x94\x93\x94.",
    ],
    ids=["integer", "nan", "depth", "lists", "utf8", "pickle"],
)
async def test_bodies_that_are_bombs_are_refused(stage: OpenStage, body: bytes) -> None:
    """Attacks 10 to 12, and a pickle, which is never taken for anything but bytes."""
    async with stage() as on:
        on.worker.script = on.worker.echo
        assert (await on.post(PATH, body))[0] == 400
        assert on.worker.jobs == []
        assert await still_serves(on)


@pytest.mark.parametrize(
    "form",
    [
        {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        },
        {"regex": "(" * 2000 + "a" + ")*" * 2000},
        {"regex": "(a|aa|aaa){1,100000}" * 50},
        {"grammar": 'start: "a" start' + " start" * 5000},
    ],
    ids=["endless", "nested", "repeated", "wide"],
)
async def test_grammars_that_are_bombs_hold_nothing_up(stage: OpenStage, form: dict[str, Any]) -> None:
    """Attack 13: refused, or bounded; the frontend goes on."""
    async with stage() as on:
        on.worker.script = on.worker.echo
        given = {"response_format": form} if "type" in form else {"structured_outputs": form}
        status, _, _ = await on.post(PATH, chat(**given))
        assert status in (200, 400)
        assert await still_serves(on)
