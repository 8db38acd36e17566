"""I/O. Asks a frontend over HTTP whether it is ready, and for what."""

import anyio
import msgspec


class _Models(msgspec.Struct):
    data: list["_Model"] = []


class _Model(msgspec.Struct):
    id: str


async def fetch(
    host: str, port: int, path: str, *, timeout_s: float = 2.0, max_bytes: int = 256 * 1024
) -> bytes | None:
    """Return the body of a 200 answer; None for any other answer, none at all, or one that takes too long."""
    request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    answer = bytearray()
    try:
        with anyio.fail_after(timeout_s):
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(request.encode())
                async for chunk in stream:
                    answer += chunk
                    if len(answer) > max_bytes:
                        return None
    except (OSError, TimeoutError, anyio.BrokenResourceError):
        return None
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return body if head.split(b" ", 2)[1:2] == [b"200"] else None


async def is_ready(host: str, port: int) -> bool:
    """Say whether the frontend would serve a request now."""
    return await fetch(host, port, "/ready") is not None


async def first_model(host: str, port: int) -> str:
    """Return the name of a model that is served, empty if there is none."""
    try:
        models = msgspec.json.decode(await fetch(host, port, "/v1/models") or b"{}", type=_Models)
    except msgspec.MsgspecError:
        return ""
    return models.data[0].id if models.data else ""


async def wait_until_ready(host: str, port: int, *, pause_s: float = 0.05) -> None:
    """Return when the frontend is ready; waits for as long as that takes."""
    while not await is_ready(host, port):  # noqa: ASYNC110 - another process tells only when asked
        await anyio.sleep(pause_s)
