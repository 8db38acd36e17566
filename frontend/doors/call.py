"""I/O. One HTTP request on its way through a handler: its body within bounds, its headers, its answer."""

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import anyio
import msgspec

from frontend.doors.exchange import Exchange
from frontend.errors import BodyTooLarge, UnsupportedMediaType

Headers = tuple[tuple[bytes, bytes], ...]
T = TypeVar("T")

JSON: Headers = ((b"content-type", b"application/json"),)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
_NOT_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_IGNORED = 1000
"""Characters of the header that names ignored parameters."""


class Call(msgspec.Struct):
    """One HTTP request."""

    exchange: Exchange
    request_id: str
    """Ours: 128 random bits."""
    arrived_at: float
    """On the clock of `time.monotonic`."""
    params: Mapping[str, str] = {}
    """The varying segments of the path, by name."""

    @property
    def shown_id(self) -> bytes:
        """What `x-request-id` says: the client's own id if it sent a usable one, else ours."""
        given = self.find_header(b"x-request-id")
        return given if given and _REQUEST_ID.match(given) else self.request_id.encode()

    @property
    def is_anthropic(self) -> bool:
        """Whether a client of Anthropic's API asks: all of them say which version of it they mean."""
        return bool(self.find_header(b"anthropic-version"))

    def find_header(self, name: bytes) -> bytes:
        """Return the first value of a header, empty when it is not there."""
        return self.exchange.headers.get(name, b"")

    async def read_json(self, limit_bytes: int) -> bytes:
        """Read the body.

        Raises `UnsupportedMediaType` for what is said to be no JSON, or compressed; `BodyTooLarge` before more than
        `limit_bytes` are read. How long the body may take is the connection's business.
        """
        kind = self.find_header(b"content-type")
        if kind != b"application/json":
            kind = kind.split(b";")[0].strip().lower()
            if kind and kind != b"application/json" and not kind.endswith(b"+json"):
                shown = kind.decode("latin-1")[:80]
                raise UnsupportedMediaType(
                    f"The body is {shown}; send JSON with the header content-type: application/json."
                )
        encoding = self.find_header(b"content-encoding").lower()
        if encoding not in (b"", b"identity"):
            shown = encoding.decode("latin-1")[:80]
            raise UnsupportedMediaType(f"The body is compressed ({shown}); send it as it is, without content-encoding.")
        length = self.find_header(b"content-length")
        if length.isdigit() and int(length) > limit_bytes:
            raise BodyTooLarge(f"The body has {int(length)} bytes; at most {limit_bytes} are taken.")
        pieces: list[bytes] = []
        num_bytes = 0
        while not self.exchange.is_read and (data := await self.exchange.receive()):
            num_bytes += len(data)
            if num_bytes > limit_bytes:
                raise BodyTooLarge(f"The body has more than the {limit_bytes} bytes that are taken.")
            pieces.append(data)
        return b"".join(pieces)


class Reply(NamedTuple):
    """An answer in one piece."""

    body: bytes
    status: int = 200
    headers: Headers = JSON


def processing_line(arrived_at: float) -> bytes:
    """Return the header that says how long it took until now, as it goes over the wire."""
    return b"openai-processing-ms: %d\r\n" % ((time.monotonic() - arrived_at) * 1000)


def ignored_header(names: Sequence[str]) -> Headers:
    """Return the header that names parameters nobody looked at; what is no plain name is cut down to one."""
    if not names:
        return ()
    shown = ",".join(_NOT_IN_HEADER.sub("_", name[:64]) for name in names)[:_MAX_IGNORED]
    return ((b"x-busway-ignored-params", shown.encode()),) if shown else ()


def json_reply(body: bytes, ignored: Sequence[str] = ()) -> Reply:
    """Return an answer in JSON that names the parameters nobody looked at."""
    return Reply(body, headers=(*JSON, *ignored_header(ignored)))


def header_lines(headers: Headers) -> bytes:
    """Render headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


async def while_connected(call: Call, work: Callable[[], Awaitable[T]]) -> T | None:
    """Do work for as long as the client is there; None says that it left and that the work was cancelled."""
    if call.exchange.is_lost:
        return None
    with anyio.CancelScope() as scope:
        call.exchange.on_lost = scope.cancel
        try:
            return await work()
        finally:
            call.exchange.on_lost = None
    return None
