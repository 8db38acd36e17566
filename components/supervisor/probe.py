"""I/O. Asks a frontend over HTTP whether it is ready, and for what."""

import ssl

import anyio
import msgspec
from anyio.abc import ByteStream


class _Models(msgspec.Struct):
    data: list["_Model"] = []


class _Model(msgspec.Struct):
    id: str


async def fetch(
    host: str, port: int, path: str, *, is_tls: bool = False, timeout_s: float = 2.0, max_bytes: int = 256 * 1024
) -> bytes | None:
    """Return the body of a 200 answer; None for any other answer, none at all, or one that takes too long.

    With `is_tls` any certificate will do: this is our own frontend on this machine, and nothing secret is said.
    """
    request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    answer = bytearray()
    try:
        with anyio.fail_after(timeout_s):
            async with await _connect(host, port, is_tls) as stream:
                await stream.send(request.encode())
                async for chunk in stream:
                    answer += chunk
                    if len(answer) > max_bytes:
                        return None
    except (OSError, TimeoutError, anyio.BrokenResourceError):
        return None
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return body if head.split(b" ", 2)[1:2] == [b"200"] else None


async def _connect(host: str, port: int, is_tls: bool) -> ByteStream:
    if not is_tls:
        return await anyio.connect_tcp(host, port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)


async def is_ready(host: str, port: int, *, is_tls: bool = False) -> bool:
    """Say whether the frontend would serve a request now."""
    return await fetch(host, port, "/ready", is_tls=is_tls) is not None


async def first_model(host: str, port: int, *, is_tls: bool = False) -> str:
    """Return the name of a model that is served, empty if there is none."""
    try:
        models = msgspec.json.decode(await fetch(host, port, "/v1/models", is_tls=is_tls) or b"{}", type=_Models)
    except msgspec.MsgspecError:
        return ""
    return models.data[0].id if models.data else ""


async def wait_until_ready(
    host: str, port: int, *, is_tls: bool = False, num_frontends: int = 1, pause_s: float = 0.05
) -> None:
    """Return when all that share the port are ready, as far as can be told; waits for as long as that takes.

    One connection meets any one of them: several in a row meet nearly all.
    """
    num_in_row = 1 if num_frontends == 1 else 4 * num_frontends
    num_ready = 0
    while num_ready < num_in_row:
        if await is_ready(host, port, is_tls=is_tls):
            num_ready += 1
        else:
            num_ready = 0
            await anyio.sleep(pause_s)
