"""Pure. Render the requests of a load run as bytes, before the clock starts."""

import random
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bus.errors import BadConfig
from components.bench.results import LoadOptions

_TEXT: Final = """
the of and to in is that it was for on are as with his they at be this have from or one had by word but not what all
were we when your can said there use an each which she do how their if will up other about out many then them these so
some her would make like him into time has look two more write go see number no way could people my than first water
been call who oil its now find long down day did get come made may part over new sound take only little work know
place year live me back give most very after thing our just name good sentence man think say great where help through
much before line right too mean old any same tell boy follow came want show also around form three small set
"""
_WORDS: Final = _TEXT.split()


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    max_tokens: int
    stream: bool
    stream_options: _StreamOptions
    ignore_eos: bool
    messages: list[_Message] | None = None
    prompt: str | None = None


class Target(msgspec.Struct, frozen=True):
    """Where requests go: an address and the path of the endpoint."""

    host: str
    port: int
    path: str
    is_tls: bool = False


def parse_target(options: LoadOptions) -> Target:
    """Read host, port and path from the URL, with or without a trailing `/v1`; raises BadConfig."""
    try:
        parts = urlsplit(options.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise BadConfig(f"bad URL {options.url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadConfig(f"the load generator speaks http://host:port and https://host:port, not {options.url!r}")
    base = parts.path.rstrip("/").removesuffix("/v1")
    tail = "/v1/chat/completions" if options.endpoint == "chat" else "/v1/completions"
    return Target(parts.hostname, port, base + tail, parts.scheme == "https")


def render_prompt(options: LoadOptions, index: int) -> str:
    """Return the words of request `index`: the same for the same seed, unlike any other's from the first word on."""
    number = 0 if options.has_identical_prompts else index
    source = random.Random(f"{options.seed}:{number}")
    words = source.choices(_WORDS, k=options.prompt_words - 1)
    return " ".join([f"{source.getrandbits(32):08x}", *words])


def render_request(options: LoadOptions, target: Target, index: int) -> bytes:
    """Return head and body of request `index`; `ignore_eos` makes every engine stream all `max_tokens`."""
    prompt = render_prompt(options, index)
    is_chat = options.endpoint == "chat"
    body = msgspec.json.encode(
        _Body(
            model=options.model,
            max_tokens=options.max_tokens,
            stream=True,
            stream_options=_StreamOptions(include_usage=True),
            ignore_eos=True,
            messages=[_Message("user", prompt)] if is_chat else None,
            prompt=None if is_chat else prompt,
        )
    )
    host = f"[{target.host}]" if ":" in target.host else target.host
    authorization = f"Authorization: Bearer {options.api_key}\r\n" if options.api_key else ""
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n{authorization}\r\n"
    )
    return head.encode() + body
