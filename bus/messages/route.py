"""Pure. What routers tell each other: every decision is an event."""

from bus.messages.base import Hot
from bus.messages.inference import LatencyClass


class Placed(Hot, frozen=True):
    """A request was sent to a worker."""

    request_id: str
    worker: str
    tenant: str
    latency_class: LatencyClass
    num_tokens: int
    uncached_tokens: int
    """Prompt tokens that the worker has to compute, as far as the router knew."""
    block_size: int
    block_hashes: bytes
    """Of the prompt's full blocks, little-endian uint64."""
    frontend: str = ""
    """Who owns the request, empty where it has no owner; `ticket` is what it knows the request by."""
    ticket: int = 0


class RouteBatch(Hot, frozen=True):
    """Decisions of one router, in order; a lost batch costs precision until the next load report, nothing else."""

    router: str
    seq: int
    """Number of this batch, from 0."""
    placed: list[Placed]
    is_leading: bool = False
    """The router takes the requests of the model at present; it says so ten times a second, also without decisions."""
