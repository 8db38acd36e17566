"""I/O. Asks one question over HTTP and notes how the answer came: each piece of text, each gap, each way to end."""

import ssl
import time

import anyio
import httptools
import msgspec
from anyio.abc import ByteStream

from bus.messages.inference import LatencyClass
from components.chaos.history import Answer, Question

MAX_ANSWER_BYTES = 16 * 2**20
CONNECT_S = 2.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask."""

    host: str
    port: int
    model: str
    api_key: str = ""
    tls: ssl.SSLContext | None = None
    """How to check the server's certificate; None: plain HTTP."""
    timeout_s: float = 60.0
    """For a whole answer."""
    deadline_s: float = 0.0
    """After which the system is to give up by itself; 0: never."""
    latency_class: LatencyClass = "standard"


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Problem(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Problem | None = None


_chunks = msgspec.json.Decoder(_Chunk)


class _Reader:
    """Takes the bytes of one response: the callbacks are httptools'."""

    def __init__(self, question: Question, started_at: float) -> None:
        self._question = question
        self._parser = httptools.HttpResponseParser(self)
        self._line = b""
        self._num_bytes = 0
        self._started_at = self._last_at = started_at
        self._first_at = self._gap_began_at = self._longest_gap_s = 0.0
        self._pieces: list[str] = []
        self._num_tokens: int | None = None
        self._num_endings = 0
        self._is_complete = False
        self.is_connected = False
        self.status = 0
        self.error = ""
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        self._num_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.error = f"no HTTP: {error}"
        if self._num_bytes > MAX_ANSWER_BYTES:
            self.error = f"more than {MAX_ANSWER_BYTES} bytes"
        self.is_over |= bool(self.error)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        self.is_over = True

    def on_body(self, body: bytes) -> None:
        if self.status != 200:
            self.error += body.decode("utf-8", "replace")[:500]
            return
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_complete = True
            return
        try:
            chunk = _chunks.decode(data)
        except msgspec.MsgspecError as error:
            self.error = f"an event that is no chunk: {error}"
            return
        if chunk.error is not None:
            self.error = chunk.error.message or "an error without a message"
        if chunk.usage is not None:
            self._num_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self._num_endings += 1
            if choice.text:
                self._pieces.append(choice.text)
                self._note_arrival(time.monotonic())

    def _note_arrival(self, now: float) -> None:
        self._first_at = self._first_at or now
        if now - self._last_at > self._longest_gap_s:
            self._longest_gap_s, self._gap_began_at = now - self._last_at, self._last_at
        self._last_at = now

    def answer(self, error: str = "") -> Answer:
        """Return what there is by now."""
        return Answer(
            question=self._question,
            status=self.status,
            text="".join(self._pieces),
            num_tokens=self._num_tokens,
            num_endings=self._num_endings,
            is_complete=self._is_complete,
            error=self.error or error,
            is_connected=self.is_connected,
            started_at=self._started_at,
            first_at=self._first_at,
            ended_at=time.monotonic(),
            longest_gap_s=self._longest_gap_s,
            gap_began_at=self._gap_began_at,
        )


async def ask(target: Target, question: Question) -> Answer:
    """Stream one greedy completion to its end, over a connection of its own; never raises: the answer tells all."""
    reader = _Reader(question, time.monotonic())
    try:
        with anyio.fail_after(target.timeout_s):
            with anyio.fail_after(CONNECT_S):
                stream = await _connect(target)
            reader.is_connected = True
            async with stream:
                await stream.send(_render(target, question))
                async for data in stream:
                    reader.feed(data)
                    if reader.is_over:
                        break
    except TimeoutError:
        return reader.answer(f"no end within {target.timeout_s:g} s")
    except (OSError, anyio.BrokenResourceError) as error:
        return reader.answer(f"the connection broke: {error or type(error).__name__}")
    return reader.answer()


async def _connect(target: Target) -> ByteStream:
    if target.tls is None:
        return await anyio.connect_tcp(target.host, target.port)
    return await anyio.connect_tcp(target.host, target.port, ssl_context=target.tls, tls_standard_compatible=False)


def _render(target: Target, question: Question) -> bytes:
    body = msgspec.json.encode(
        {
            "model": target.model,
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    host = f"[{target.host}]" if ":" in target.host else target.host
    key = f"authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    if target.deadline_s:
        key += f"x-busway-timeout-s: {target.deadline_s:g}\r\n"
    if target.latency_class != "standard":
        key += f"x-busway-latency-class: {target.latency_class}\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}:{target.port}\r\ncontent-type: application/json\r\n"
    return f"{head}{key}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
