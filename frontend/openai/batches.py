"""Pure. Bodies and answers of `/v1/batches`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bus.messages.batches import ENDED, BatchStatus, LineError, StoredBatch
from frontend.openai.body import BodyDecoder
from frontend.request import Usage
from frontend.responses.answers import UsageShown, usage_shown

_Text = Annotated[str, Meta(max_length=512)]


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/batches`."""

    input_file_id: Annotated[str, Meta(min_length=1, max_length=128)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], _Text], Meta(max_length=16)] | None = None


class RequestCounts(msgspec.Struct, frozen=True):
    """How far a batch is."""

    total: int
    completed: int
    failed: int


class BatchErrors(msgspec.Struct, frozen=True):
    """Why a batch could not begin."""

    data: list[LineError]
    object: str = "list"


class BatchShown(msgspec.Struct, frozen=True, kw_only=True):
    """A batch."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    usage: UsageShown | msgspec.UnsetType = msgspec.UNSET
    """From its end on."""


batch_body: BodyDecoder[BatchBody] = BodyDecoder(BatchBody)


def show_batch(batch: str, stored: StoredBatch) -> BatchShown:
    """Return a batch as clients see it."""

    def ended(status: BatchStatus) -> int | None:
        return _seconds(stored.ended_at) if stored.status == status else None

    taken = stored.used
    used = Usage(taken.input_tokens, taken.output_tokens, taken.cached_tokens, taken.reasoning_tokens)
    return BatchShown(
        id=batch,
        endpoint=stored.endpoint,
        errors=BatchErrors(stored.errors) if stored.errors else None,
        input_file_id=stored.input_file,
        status=stored.status,
        output_file_id=stored.output_file or None,
        error_file_id=stored.error_file or None,
        created_at=int(stored.created_at),
        in_progress_at=_seconds(stored.in_progress_at),
        expires_at=int(stored.expires_at),
        finalizing_at=_seconds(stored.finalizing_at),
        completed_at=ended("completed"),
        failed_at=ended("failed"),
        expired_at=ended("expired"),
        cancelling_at=_seconds(stored.cancelling_at),
        cancelled_at=ended("cancelled"),
        request_counts=RequestCounts(stored.num_lines, stored.num_completed, stored.num_failed),
        metadata=stored.metadata or None,
        usage=usage_shown(used) if stored.status in ENDED else msgspec.UNSET,
    )


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
