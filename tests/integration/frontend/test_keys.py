"""With keys, every request is somebody's: refused, limited and charged as its key says."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.codec import encode
from bus.keys import digest_of
from bus.messages.inference import GenerateJob
from bus.messages.keys import ApiKey, KeyUse, KeyUses
from bus.protocol import Incoming
from bus.typed import subscribe_typed

pytestmark = pytest.mark.anyio

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What is Busway?"}], "max_tokens": 20}
PATH = "/v1/chat/completions"


async def put(on: Any, secret: str, key: ApiKey) -> None:
    await on.bus.bucket("KEYS").put(digest_of(secret.encode()), encode(key))


async def wait_status(on: Any, status: int, *headers: str) -> dict[str, str]:
    """Ask until the answer has that status; return its headers."""
    with anyio.fail_after(30):
        while True:
            found, answer_headers, _ = await on.post(PATH, CHAT, *headers)
            if found == status:
                return dict(answer_headers)
            await anyio.sleep(0.01)


async def test_keys_of_the_bucket_are_followed(stage: OpenStage) -> None:
    async with stage(keys="bucket") as on:
        on.worker.script = on.worker.echo
        status, headers, answer = await on.post(PATH, CHAT)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"].startswith("Bearer")
        await put(on, "one", ApiKey(name="one", tenant="acme", cache_salt="acme"))
        await wait_status(on, 200, "Authorization: Bearer one")
        job: GenerateJob = on.worker.jobs[-1]
        assert (job.tenant, job.cache_salt) == ("acme", "4:acme:")
        assert (await on.post(PATH, CHAT, "x-api-key: one"))[0] == 200
        await on.bus.bucket("KEYS").delete(digest_of(b"one"))
        await wait_status(on, 401, "Authorization: Bearer one")


async def test_tenants_do_not_share_cached_prefixes(stage: OpenStage) -> None:
    """Attack 22: what another tenant asked before is no faster, by whichever door, whatever salt the request has."""
    async with stage(keys="bucket") as on:
        on.worker.script = on.worker.echo
        for tenant in ("acme", "umbrella"):
            await put(on, tenant, ApiKey(name=tenant, tenant=tenant))
            await wait_status(on, 200, f"Authorization: Bearer {tenant}")
        await put(on, "plain", ApiKey(name="plain"))
        await wait_status(on, 200, "Authorization: Bearer plain")
        salts = {job.tenant: job.cache_salt for job in on.worker.jobs}
        assert salts == {"acme": "11:tenant:acme:", "umbrella": "15:tenant:umbrella:", "default": ""}
        for tenant in ("acme", "umbrella"):
            body = {**CHAT, "cache_salt": "15:tenant:umbrella:"}
            assert (await on.post(PATH, body, f"Authorization: Bearer {tenant}"))[0] == 200
        assert on.worker.jobs[-1].cache_salt != on.worker.jobs[-2].cache_salt
        await on.worker.bus.request(on.bus.subjects.ask("tiny", "acme"), b"What is Busway?", timeout_s=30)
        assert on.worker.jobs[-1].cache_salt == salts["acme"]


async def test_every_family_says_401_its_own_way_and_probes_need_no_key(stage: OpenStage, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": {digest_of(b"k"): {"name": "k", "models": ["other*"]}}}))
    async with stage(keys=str(file)) as on:
        status, _, answer = await on.post("/v1/messages", CHAT)
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        for path in ("/v1/models", "/metrics", "/docs"):
            assert (await on.get(path))[0] == 401
        assert (await on.get("/live"))[0] == 200
        status, _, answer = await on.post(PATH, CHAT, "Authorization: Bearer k")
        assert (status, answer["error"]["param"]) == (403, "model")
        status, _, answer = await on.post("/v1/messages", CHAT, "x-api-key: k")
        assert (status, answer["error"]["type"]) == (403, "permission_error")


async def test_limits_are_told_and_held(stage: OpenStage, tmp_path: Path) -> None:
    limits = {
        "slow": {"name": "slow", "requests_per_s": 0.001},
        "small": {"name": "small", "tokens_per_min": 60},
        "single": {"name": "single", "max_concurrent": 1},
    }
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": {digest_of(name.encode()): key for name, key in limits.items()}}))
    async with stage(keys=str(file)) as on:
        on.worker.script = on.worker.echo
        status, headers, _ = await on.post(PATH, CHAT | {"stream": True}, "Authorization: Bearer slow")
        assert (status, headers["x-ratelimit-remaining-requests"]) == (200, "0")
        status, headers, answer = await on.post(PATH, CHAT, "Authorization: Bearer slow")
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert 990 < int(headers["retry-after"]) <= 1000
        assert int(headers["retry-after-ms"]) <= 1_000_000
        job: GenerateJob = on.worker.jobs[-1]
        status, headers, answer = await on.post(PATH, CHAT, "Authorization: Bearer small")
        assert status == 200
        # The second finds what is left after the first was settled by its use, not by its bound.
        status, headers, _ = await on.post(PATH, CHAT, "Authorization: Bearer small")
        total = answer["usage"]["total_tokens"]
        assert status == (200 if 60 - total >= len(job.prompt) // 4 + 20 else 429)
        assert 0 <= int(headers["x-ratelimit-remaining-tokens"]) <= 60 - total + 1
        on.worker.script = None
        taken = len(on.worker.jobs)
        body = json.dumps(CHAT).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nx-api-key: single\r\nContent-Length: {len(body)}\r\n\r\n"
        async with await on.send(head.encode() + body):
            await on.worker.wait_jobs(taken + 1)
            status, headers, _ = await on.post(PATH, CHAT, "x-api-key: single")
            assert (status, headers["retry-after"]) == (429, "1")
        on.worker.script = on.worker.echo
        await wait_status(on, 200, "x-api-key: single")


async def test_frontends_tell_each_other_what_keys_used(stage: OpenStage, tmp_path: Path) -> None:
    digest = digest_of(b"k")
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": {digest: {"name": "k", "requests_per_s": 0.001, "burst": 2}}}))
    told: list[KeyUse] = []
    heard = anyio.Event()

    def hear(message: KeyUses, _: Incoming) -> None:
        told.extend(message.uses)
        heard.set()

    async with stage(keys=str(file)) as on:
        on.worker.script = on.worker.echo
        subscribe_typed(on.bus, on.bus.subjects.spent("*"), KeyUses, hear)
        assert (await on.post(PATH, CHAT, "x-api-key: k"))[0] == 200
        with anyio.fail_after(30):
            await heard.wait()
        assert [(use.digest, use.requests) for use in told] == [(digest, 1)]
        on.bus.publish(on.bus.subjects.spent("f-other"), b"no message")
        on.bus.publish(on.bus.subjects.spent("f-forged"), encode(KeyUses("f-other", [KeyUse(digest, 1, 0.0, 0)])))
        on.bus.publish(on.bus.subjects.spent("f-other"), encode(KeyUses("f-other", [KeyUse("0" * 64, 1, 0.0, 0)])))
        assert (await on.post(PATH, CHAT, "x-api-key: k"))[0] == 200
        on.bus.publish(on.bus.subjects.spent("f-other"), encode(KeyUses("f-other", [KeyUse(digest, 500, 0.0, 0)])))
        with anyio.fail_after(30):
            while True:
                status, headers, _ = await on.post(PATH, CHAT, "x-api-key: k")
                assert status == 429
                if int(headers["retry-after"]) > 400_000:
                    break


async def test_web_pages_of_allowed_origins_may_call(stage: OpenStage, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": {digest_of(b"k"): {"name": "k"}}}))
    async with stage(keys=str(file), cors_origins=("https://app.example",)) as on:
        origin = "Origin: https://app.example"
        ask = f"OPTIONS {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{origin}\r\n\r\n"
        status, headers, _ = await on.exchange(ask.encode())
        assert (status, headers["access-control-allow-origin"]) == (204, "https://app.example")
        assert "POST" in headers["access-control-allow-methods"]
        on.worker.script = on.worker.echo
        stream = CHAT | {"stream": True}
        for key, expected in (("k", 200), ("wrong", 401)):
            status, headers, _ = await on.post(PATH, stream, origin, f"Authorization: Bearer {key}")
            assert (status, headers["access-control-allow-origin"]) == (expected, "https://app.example")
        _, headers, _ = await on.post(PATH, stream, "Origin: https://evil.example", "x-api-key: k")
        assert "access-control-allow-origin" not in headers


async def test_a_full_frontend_refuses_connections_at_once(stage: OpenStage) -> None:
    async with stage(max_connections=2) as on:
        async with await on.send(b""), await on.send(b""):
            status, headers, body = await on.exchange(b"")
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
        await on.wait_ready()
