"""Pure. A request as the router sees it: how long, whose, and the hashes of its blocks."""

from array import array
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from bus.messages.base import Fact
from bus.messages.inference import Hints, LatencyClass, Ticket
from bus.messages.transfer import Handover
from bus.protocol import Delivery
from bus.wire import TTL
from components.router.tiers import Load
from kv_events.hashing import packed_block_hashes, salt_hash

Holding = tuple[int, tuple[Load, ...]]
"""The tokens of the prompt's prefix that a worker holds in device memory, and what it can load after."""


class RoutedJob(Fact, frozen=True, kw_only=True, tag="generate_job"):
    """What routing reads of a `GenerateJob`, from the same bytes: they go on to the worker as they came.

    Nothing of the rest is decoded or checked, and the token ids are not copied.
    """

    request_id: str
    attempt: Annotated[int, Meta(ge=0, le=1000)] = 0
    frontend: str
    ticket: Ticket
    model: str
    prompt: memoryview
    output: memoryview = memoryview(b"")
    latency_class: LatencyClass = "standard"
    tenant: str = "default"
    cache_salt: str = ""
    deadline_at: float | None = None
    session: str = ""
    hints: Hints = Hints()
    handover: Handover | None = None


class Origin(msgspec.Struct, eq=False):
    """The delivery that brought a request, and what its owner knows it by."""

    delivery: Delivery
    frontend: str
    ticket: int
    message_id: str
    """The worker's lane takes a message once under this id."""
    lifetime_s: int | None = None
    """How long its owner waits for a worker, where that was told; what is in a lane for so long helps nobody."""
    is_acked: bool = False
    """It was in a lane before, so that the queue of requests knows it no more."""


class Request(msgspec.Struct, eq=False, kw_only=True):
    """A prompt that looks for a worker. `origin` is None where somebody only asks."""

    key: str
    tenant: str
    latency_class: LatencyClass
    priority: int = 0
    """As `Hints.priority`."""
    session: str = ""
    num_tokens: int
    """Prompt, and output of earlier attempts."""
    chains: dict[int, "array[int]"]
    """Hashes of the blocks that can be cached, by block size."""
    num_prefilled_blocks: int | None = None
    """Another worker computed the prompt and offers so many blocks of it; None: it is to be computed."""
    origin: Origin | None = None
    holdings: dict[int, Holding] = {}
    """By the numbers of the workers that hold anything."""
    matched_at: float = float("-inf")
    version: int = -1
    """Of the predictions that `holdings` counts with."""


def hash_chains(tokens: bytes | memoryview, root: int, block_sizes: Iterable[int]) -> dict[int, "array[int]"]:
    """Hash packed token ids, once for each block size that workers use.

    The last token is always computed, so a block that ends with it is never taken from a cache.
    """
    return {size: array("Q", packed_block_hashes(tokens[: len(tokens) - 4], size, root)) for size in block_sizes}


def to_request(job: RoutedJob, delivery: Delivery, block_sizes: Iterable[int]) -> Request:
    """Return what the router needs of a job; `block_sizes` is empty where prefixes do not matter."""
    tokens = b"".join((job.prompt, job.output)) if job.output else job.prompt
    key = f"{job.request_id}:{job.attempt}" + (":decode" if job.handover is not None else "")
    return Request(
        key=key,
        tenant=job.tenant,
        latency_class=job.latency_class,
        priority=job.hints.priority,
        session=job.session,
        num_tokens=max(1, len(tokens) // 4),
        chains=hash_chains(tokens, salt_hash(job.model, job.cache_salt), block_sizes),
        num_prefilled_blocks=None if job.handover is None else job.handover.num_blocks,
        origin=Origin(delivery, job.frontend, job.ticket, key, _lifetime_s(delivery.headers)),
    )


def _lifetime_s(headers: Mapping[str, str] | None) -> int | None:
    text = headers.get(TTL, "") if headers else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
