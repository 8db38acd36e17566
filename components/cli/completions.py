"""I/O. A client of the chat API, small enough for one command: asks, and yields the answer as it streams."""

import http.client
import json
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from bus.access import client_context
from bus.errors import BusUnavailable, BuswayError, UnknownModel
from components.cli.address import split_url

KEY_VARIABLE = "BUSWAY_API_KEY"
"""Environment variable with the key for a server that asks for one."""
MAX_LINE_BYTES = 1024 * 1024


class ChatFailed(BuswayError):
    """The frontend refused the request, or the answer broke off."""

    code = "chat_failed"


class KeyNeeded(ChatFailed):
    """The server asks for an API key, or for another one."""

    code = "key_needed"
    hint = f"export {KEY_VARIABLE}=...   (busway keys add NAME makes one)"


class NotServed(UnknownModel):
    """There is no such model; `hint` names one that there is."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Unreachable(BusUnavailable):
    """Nobody who can be trusted or understood answers at the frontend's address."""

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(f"{url} does not answer: {error or type(error).__name__}")
        self.hint = "busway doctor, and `busway up` if nothing runs yet"
        if isinstance(error, ssl.SSLCertVerificationError):
            self.hint = "export SSL_CERT_FILE=FILE: .busway/security/ca.pem of the machine that it runs on"
        elif isinstance(error, http.client.RemoteDisconnected) and url.startswith("http://"):
            self.hint = f"--url https{url.removeprefix('http')}, which it speaks if it was started with --secure"


class Target(msgspec.Struct, frozen=True):
    """Whom to ask, and how freely it answers."""

    url: str
    """Of the frontend, without a path."""
    model: str
    temperature: float | None
    """None leaves it to the model."""
    tls_ca: str = ""
    """PEM file of who signed the frontend's certificate; empty: one of those that this machine trusts."""


class Message(msgspec.Struct, frozen=True):
    """One turn of the conversation."""

    role: str
    content: str


class Piece(NamedTuple):
    """Some characters of an answer."""

    text: str
    is_thought: bool = False
    """What the model thinks before it answers; no part of the conversation."""


class Figures(msgspec.Struct):
    """How the answer came: filled while it streams."""

    started: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    num_chunks: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def summary(self) -> str:
        """Return time to first token, tokens and tokens per second; empty without an answer."""
        if not self.num_chunks:
            return ""
        tokens = self.output_tokens or self.num_chunks
        rate = (tokens - 1) / (self.ended - self.first) if tokens > 1 and self.ended > self.first else 0.0
        cached = f", {self.cached_tokens} prompt tokens from the cache" if self.cached_tokens else ""
        return f"first token {(self.first - self.started) * 1000:.0f} ms, {tokens} tokens, {rate:.0f} tokens/s{cached}"


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Problem(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Problem | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] = []


def served_models(url: str, tls_ca: str = "") -> list[str]:
    """Return the names of the models that are served; raise `BusUnavailable` when nobody answers."""
    status, body = _get(url, "/v1/models", tls_ca)
    if status != 200:
        raise _refusal(f"{url}/v1/models", status, body)
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except msgspec.MsgspecError as error:
        raise ChatFailed(f"{url} is no Busway frontend: {error}") from error


def is_ready(url: str, tls_ca: str = "") -> bool:
    """Say whether a request would be served now; raise `BusUnavailable` when nobody answers."""
    return _get(url, "/ready", tls_ca)[0] == 200


def choose_model(url: str, name: str | None, tls_ca: str = "") -> str:
    """Return `name` if it is served, or the first model that is; raise `UnknownModel` that lists what there is."""
    models = served_models(url, tls_ca)
    if not models:
        raise UnknownModel(f"{url} serves no model yet: no worker is ready")
    if name is not None and name not in models:
        raise NotServed(f"model {name!r} not found; served: {', '.join(models)}", hint=f"--model {models[0]}")
    return name or models[0]


def stream_chat(target: Target, messages: Sequence[Message], figures: Figures) -> Iterator[Piece]:
    """Yield the pieces of the answer; raise `ChatFailed` when it is refused or breaks off."""
    body = {
        "model": target.model,
        "messages": [msgspec.to_builtins(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.temperature is not None:
        body["temperature"] = target.temperature
    connection = _connect(target.url, target.tls_ca, timeout_s=300)
    figures.started = time.perf_counter()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), _headers())
        response = connection.getresponse()
        if response.status != 200:
            raise _refusal("the frontend", response.status, response.read(MAX_LINE_BYTES))
        yield from _pieces(response, figures)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(target.url, error) from error
    finally:
        connection.close()


def explain(url: str, body: bytes, tls_ca: str = "") -> bytes:
    """Return the answer of `/v1/explain`, JSON; raise `ChatFailed` when the request is refused."""
    connection = _connect(url, tls_ca, timeout_s=30)
    try:
        connection.request("POST", "/v1/explain", body, _headers())
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(url, error) from error
    finally:
        connection.close()
    if response.status != 200:
        raise _refusal("the frontend", response.status, answer)
    return answer


def _pieces(response: http.client.HTTPResponse, figures: Figures) -> Iterator[Piece]:
    """Read server-sent events up to `[DONE]`."""
    while line := response.readline(MAX_LINE_BYTES):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            figures.ended = figures.ended or time.perf_counter()
            return
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except msgspec.MsgspecError as error:
            raise ChatFailed(f"the answer holds something that is no chunk: {error}") from error
        if chunk.error is not None:
            raise ChatFailed(f"the answer broke off: {chunk.error.message}")
        if chunk.usage is not None:
            figures.output_tokens = chunk.usage.completion_tokens
            if chunk.usage.prompt_tokens_details is not None:
                figures.cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
        for choice in chunk.choices:
            thought, said = choice.delta.reasoning_content, choice.delta.content
            if thought or said:
                figures.ended = time.perf_counter()
                figures.first = figures.first or figures.ended
                figures.num_chunks += 1
                yield Piece(said or thought or "", is_thought=not said)
    raise ChatFailed("the answer broke off without an end")


def _get(url: str, path: str, tls_ca: str) -> tuple[int, bytes]:
    connection = _connect(url, tls_ca, timeout_s=10)
    try:
        connection.request("GET", path, headers=_headers())
        response = connection.getresponse()
        return response.status, response.read(MAX_LINE_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(url, error) from error
    finally:
        connection.close()


def _connect(url: str, tls_ca: str, *, timeout_s: float) -> http.client.HTTPConnection:
    if not url.startswith("https:"):
        return http.client.HTTPConnection(*split_url(url), timeout=timeout_s)
    host, port = split_url(url, 443)
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=client_context(tls_ca))


def _refusal(who: str, status: int, body: bytes) -> ChatFailed:
    kind = KeyNeeded if status in (401, 403) else ChatFailed
    return kind(f"{who} answers {status}: {_problem(body)}")


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "")
    return {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})


def _problem(body: bytes) -> str:
    try:
        problem = msgspec.json.decode(body, type=_Chunk).error
    except msgspec.MsgspecError:
        problem = None
    return problem.message if problem else body[:200].decode("utf-8", "replace")
