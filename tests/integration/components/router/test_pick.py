"""The pick door over HTTP: bounded, clear about what is wrong."""

import asyncio
from typing import Any

import msgspec
import pytest

from bus.errors import BadConfig
from bus.server import free_port

pytestmark = pytest.mark.anyio
Stage = Any


async def post(port: int, body: bytes, *, path: str = "/v1/pick", method: str = "POST") -> tuple[int, dict[str, Any]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )
    writer.write(body)
    head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), msgspec.json.decode(content)


async def test_it_answers_over_http(stage: Stage) -> None:
    port = free_port()
    await stage.add_puppet("w-1")
    await stage.add_router("r-1", pick_port=port)
    question = msgspec.json.encode({"model": "m", "tokens": list(range(100)), "reserve": True, "request_id": "a"})
    status, answer = await post(port, question)
    assert (status, answer["worker"], answer["cached_tokens"], answer["reserved"]) == (200, "w-1", 0, True)
    status, answer = await post(port, question)
    assert (status, answer["cached_tokens"]) == (200, 96)
    status, answer = await post(port, msgspec.json.encode({"model": "m", "tokens": list(range(100)), "explain": True}))
    assert [(each["worker"], each["cached_tokens"]) for each in answer["candidates"]] == [("w-1", 96)]
    for body, expected in (
        (b"", 400),
        (b"{", 400),
        (b'{"model":"m"}', 400),
        (b'{"model":"m","tokens":[4294967296]}', 400),
        (b'{"model":"m","block_hashes":[18446744073709551616],"num_tokens":64}', 400),
        (b'{"model":"m","block_hashes":[1]}', 400),
        (b"[" * 100_000, 400),
        (b'{"model":"other","tokens":[1]}', 404),
        (b" " * (8 * 2**20 + 1), 413),
    ):
        status, answer = await post(port, body)
        assert (status, list(answer)) == (expected, ["error"]), body[:60]
    assert (await post(port, b"", path="/"))[0] == 404
    assert (await post(port, b"", method="GET"))[0] == 405


async def test_a_port_that_is_taken_is_said_so(stage: Stage) -> None:
    port = free_port()
    await stage.add_puppet("w-1")
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
    try:
        with pytest.raises(BadConfig, match=str(port)):
            await stage.run_router("r-1", pick_port=port)
    finally:
        server.close()
