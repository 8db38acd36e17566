"""What a reviewer tries over HTTP: each is refused with its status, and the next request is served."""

import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import pytest

from bus.codec import encode
from bus.keys import digest_of
from bus.messages.base import pack_u32
from bus.messages.inference import Accepted, Failed, Finished, StepBatch

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
        tracemalloc.start()
        try:
            assert (await on.post(PATH, body))[0] == 400
            assert tracemalloc.get_traced_memory()[1] < 10_000_000 + 4 * len(body)
        finally:
            tracemalloc.stop()
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


@asynccontextmanager
async def trickling(on: Any, count: int) -> AsyncIterator[Callable[[], tuple[int, int]]]:
    """Open connections that send a byte of a request every half second; yield how many there were and are."""
    num_opened = num_open = 0

    async def trickle() -> None:
        nonlocal num_opened, num_open
        stream = await on.send(f"POST {PATH} HTTP/1.1\r\nx: ".encode())
        num_opened += 1
        num_open += 1
        try:
            async with stream:
                while True:
                    with anyio.move_on_after(0.5):
                        await stream.receive()
                        return
                    await stream.send(b"y")
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            num_open -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(trickle)
        yield lambda: (num_opened, num_open)
        tasks.cancel_scope.cancel()


async def seconds_each(on: Any, *headers: str, count: int = 20) -> list[float]:
    """Ask so many questions, one after another; return how long each took.

    What this thread computed meanwhile: everybody shares it, and what else the machine did is nobody's fault.
    """
    times = []
    for _ in range(count):
        began = time.thread_time()
        assert (await on.post(PATH, chat(), *headers))[0] == 200
        times.append(time.thread_time() - began)
    return times


async def test_clients_that_send_a_byte_now_and_then_are_cut_off(stage: OpenStage, eventually: Any) -> None:
    """Attack 7: 500 of them; others are served meanwhile as before."""
    async with stage() as on:
        on.worker.script = on.worker.echo
        before = await seconds_each(on)
        async with trickling(on, 500) as counts:
            await eventually(lambda: counts()[0] == 500)
            meanwhile = []
            while len(meanwhile) < 20 and counts()[1]:
                meanwhile += await seconds_each(on, count=1)
            await eventually(lambda: counts() == (500, 0))
        assert median(meanwhile or [0.0]) < 2 * max(median(before), 0.02)


async def test_one_key_that_floods_takes_nothing_from_another(stage: OpenStage, tmp_path: Path) -> None:
    """Attack 24: its requests beyond its limits are 429 at once; those of another key are served as before."""
    keys = {"greedy": {"name": "greedy", "requests_per_s": 1, "burst": 5, "tenant": "greedy"}, "calm": {"name": "calm"}}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": {digest_of(name.encode()): key for name, key in keys.items()}}))
    async with stage(keys=str(file)) as on:
        on.worker.script = on.worker.echo
        statuses: list[int] = []
        is_over = False

        async def flood() -> None:
            while not is_over:
                status, headers, _ = await on.post(PATH, chat(), "x-api-key: greedy")
                assert status == 200 or int(headers["retry-after"]) >= 1
                statuses.append(status)

        before = await seconds_each(on, "x-api-key: calm")
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(flood)
            meanwhile = await seconds_each(on, "x-api-key: calm")
            is_over = True
        took_s = time.monotonic() - began
        assert statuses.count(429) > 20
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 5 + 1 + took_s
        # The flood and the others share this test's one thread: four clients beside the one that is measured.
        assert median(meanwhile) < 6 * max(median(before), 0.01)


async def test_what_was_recorded_and_what_is_forged_changes_no_answer(stage: OpenStage) -> None:
    """Attacks 20 and 21: batches played again, and batches of a worker about requests of another one."""
    async with stage() as on, on.connect("w-evil") as evil:
        text = "The quick brown fox jumps over the lazy dog."
        heard: list[tuple[str, bytes]] = []
        out = on.bus.subjects.out(on.frontend.name, "*")
        on.bus.subscribe(out, lambda incoming: heard.append((incoming.subject, incoming.payload)))
        on.worker.script = lambda job: on.worker.echo(job, text)
        body = chat(max_tokens=40)
        _, _, answer = await on.post(PATH, body)
        recorded, first = list(heard), on.worker.jobs[-1]
        assert recorded

        def attack(ticket: int, *, source: str = "") -> None:
            for subject, payload in recorded:
                evil.publish(subject, payload)  # this bus is open; a guarded one denies it
            forged = StepBatch(
                worker="w-evil",
                seq=0,
                tickets=pack_u32([ticket]),
                offsets=pack_u32([0]),
                tokens=pack_u32([9]),
                accepted=[Accepted(ticket, source=source)],
                finished=[Finished(ticket, 1, "stop")],
                failed=[Failed(ticket, "engine_died", "so it says", False)],
            )
            mine = on.bus.subjects.out(on.frontend.name, "w-evil")
            evil.publish(mine, encode(forged))
            evil.publish(mine, encode(StepBatch(worker=on.worker.name, seq=0, failed=forged.failed)))

        on.worker.script = None
        tokens = on.worker.tokenizer.encode(text).ids
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await on.post(PATH, body))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            job = await on.worker.wait_jobs(2)
            for guess in range(first.ticket + 1, first.ticket + 50):
                assert guess != job.ticket, "what a worker saw says nothing of what comes"
                attack(guess, source=on.worker.name)
            await evil.flush()
            on.worker.say(job, tokens[:3])
            await on.worker.bus.flush()
            attack(job.ticket)
            await evil.flush()
            on.worker.say(job, tokens[3:], at=3, reason="stop")
        status, _, told = answers[0]
        assert (status, told["choices"]) == (200, answer["choices"])
