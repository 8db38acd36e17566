"""Pure. Uploaded files, and batches of requests that nobody waits for."""

from typing import Literal

import msgspec

from bus.messages.base import Fact

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})


class StoredFile(Fact, frozen=True, kw_only=True, tag="stored_file"):
    """What is known of an uploaded or a made file; its content is in pieces."""

    tenant: str
    filename: str
    purpose: str
    num_bytes: int
    num_pieces: int
    created_at: float
    """Unix seconds, here and below."""
    expires_at: float


class LineError(msgspec.Struct, frozen=True):
    """Why a batch cannot begin."""

    code: str
    message: str
    line: int | None = None
    """From 1."""
    param: str | None = None


class TokensUsed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the lines of a batch took, those that were answered."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "TokensUsed") -> "TokensUsed":
        """Return both together."""
        return TokensUsed(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class StoredBatch(Fact, frozen=True, kw_only=True, tag="stored_batch"):
    """A batch as any frontend can show it and go on with it."""

    tenant: str
    input_file: str
    endpoint: str
    metadata: dict[str, str] = {}
    status: BatchStatus = "validating"
    created_at: float
    expires_at: float
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    cancelling_at: float | None = None
    ended_at: float | None = None
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_file: str = ""
    error_file: str = ""
    errors: list[LineError] = []
    models: list[str] = []
    """What the key of its owner is for; empty: all."""
    cache_salt: str = ""
    """That of its owner's key."""
    used: TokensUsed = TokensUsed()
    """Known when it has ended."""


class BatchJob(Fact, frozen=True, kw_only=True, tag="batch_job"):
    """A batch that is to be carried on by whoever takes this; done when the batch has ended."""

    tenant: str
    batch: str


class LineResult(Fact, frozen=True, kw_only=True, tag="line_result"):
    """What one line of a batch came to; written once."""

    is_completed: bool
    """True: for the output file; False: for the error file."""
    line: bytes
    """JSON, without the line break."""
