"""Pure. Traces in Mooncake's format: read with bounds, turned into prompts, and how much reuse they allow at best."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from bus.errors import BadConfig
from components.replay.book import Arrival

TRACE_BLOCK_TOKENS = 512
"""Tokens that one id of a trace stands for."""

MAX_LINE_BYTES = 1 << 20
MAX_REQUESTS = 1_000_000
MAX_TOKENS = 1 << 21

_Length = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_HashId = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One line: equal `hash_ids` from the start mean an equal prefix."""

    timestamp: Annotated[float, Meta(ge=0, le=1e12)]
    """Arrival, in milliseconds since the start of the trace."""
    input_length: _Length
    output_length: _Length
    hash_ids: Annotated[list[_HashId], Meta(max_length=MAX_TOKENS // TRACE_BLOCK_TOKENS)]

    @property
    def arrival_s(self) -> float:
        return self.timestamp / 1000


def read_trace(lines: Iterable[bytes], *, limit: int = MAX_REQUESTS, source: str = "trace") -> list[TraceRequest]:
    """Return the first `limit` requests in the order of their arrival; raise `BadConfig` that names the line at fault.

    Empty lines are skipped. Every token must be covered by an id: ids that are too few or too many are a fault.
    """
    decoder = msgspec.json.Decoder(TraceRequest)
    requests: list[TraceRequest] = []
    for number, line in enumerate(lines, 1):
        if len(requests) == min(limit, MAX_REQUESTS):
            break
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            raise BadConfig(f"{source}:{number}: {len(line)} bytes in one line, at most {MAX_LINE_BYTES} make sense")
        try:
            request = decoder.decode(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise BadConfig(f"{source}:{number}: no request of a Mooncake trace: {error}") from error
        num_blocks = -(-request.input_length // TRACE_BLOCK_TOKENS)
        if len(request.hash_ids) != num_blocks:
            raise BadConfig(
                f"{source}:{number}: {request.input_length} tokens are {num_blocks} blocks of {TRACE_BLOCK_TOKENS}, "
                f"but there are {len(request.hash_ids)} hash_ids"
            )
        requests.append(request)
    if not requests:
        raise BadConfig(f"{source}: no request in it")
    return sorted(requests, key=lambda request: request.timestamp)


class PromptWriter:
    """Writes the prompts of a trace as packed token ids of one vocabulary; an id gives the same tokens every time."""

    def __init__(self, vocab_size: int) -> None:
        if not 4 <= vocab_size <= 2**31:
            raise ValueError(f"no vocabulary holds {vocab_size} tokens")
        # A power of two below half the vocabulary, lifted by as much: no special ids, and no division a token.
        span = 1 << (vocab_size // 2).bit_length() - 1
        lanes = (1 << 32 * TRACE_BLOCK_TOKENS) // (2**32 - 1)  # ...00000001_00000001: one 1 for each uint32
        self._mask = (span - 1) * lanes
        self._lift = span // 2 * lanes
        self._block = lru_cache(maxsize=4096)(self._make_block)

    def write(self, request: TraceRequest) -> bytes:
        """Return the prompt, little-endian uint32."""
        return b"".join(map(self._block, request.hash_ids))[: 4 * request.input_length]

    def _make_block(self, hash_id: int) -> bytes:
        size = 4 * TRACE_BLOCK_TOKENS
        noise = int.from_bytes(hashlib.shake_128(hash_id.to_bytes(8, "little")).digest(size), "little")
        return ((noise & self._mask) + self._lift).to_bytes(size, "little")


def arrivals_of(requests: Iterable[TraceRequest], writer: PromptWriter, *, load: float = 1.0) -> Iterator[Arrival]:
    """Yield the requests as load, `load` times as fast as recorded; prompts are written when they are due."""
    for request in requests:
        yield Arrival(at_s=request.arrival_s / load, prompt=writer.write(request), num_output=request.output_length)
