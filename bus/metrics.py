"""I/O. Every metric of every process, in one registry; a process shows those that it moves.

Names start with `busway_`, units are seconds and bytes, labels come from closed sets. Declare here, use there:
`from bus.metrics import MALFORMED_MESSAGES`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest, start_http_server

from bus.errors import BadConfig

REGISTRY = CollectorRegistry(auto_describe=True)
"""Made here, so that nothing outside Busway (the library's own default collectors) gets in."""

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render() -> bytes:
    """Return all metrics in the Prometheus text format, whose media type is `CONTENT_TYPE`."""
    return generate_latest(REGISTRY)


@contextmanager
def expose(port: int | None) -> Iterator[None]:
    """Serve `/metrics` on the loopback interface while the context is open; None: do not.

    For processes that have no HTTP door of their own. The server is a thread and costs nothing until it is asked.
    Raises `BadConfig` when the port is taken.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, "127.0.0.1", REGISTRY)
    except OSError as error:
        raise BadConfig(f"metrics cannot be served on port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Bus

MALFORMED_MESSAGES = Counter(
    "busway_malformed_messages",
    "Received messages whose bytes are no message of the expected type.",
    ["family"],
    registry=REGISTRY,
)
"""`family` is the second token of the subject (`out`, `work`, ...), `other` where it is none of ours."""

BUS_HANDLER_ERRORS = Counter(
    "busway_bus_handler_errors",
    "Exceptions that handlers of messages raised.",
    ["family"],
    registry=REGISTRY,
)

BUS_RECONNECTS = Counter("busway_bus_reconnects", "Connections that replaced a lost one.", registry=REGISTRY)

# Components

COMPONENT_MESSAGES = Counter(
    "busway_component_messages",
    "Messages that a component handled, by what became of them.",
    ["component", "outcome"],
    registry=REGISTRY,
)
"""`outcome`: `handled`, `retried`, `failed` (given up), `buried` (dead letter), `dropped` (queue full)."""

COMPONENT_SECONDS = Histogram(
    "busway_component_handler_seconds",
    "Time in a component's handler, for one message.",
    ["component"],
    buckets=(0.0005, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0),
    registry=REGISTRY,
)

# Worker

WORKER_JOBS = Counter(
    "busway_worker_jobs",
    "Jobs that reached this worker, by what became of them.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: `accepted`, `repeated` (delivered before), `returned` (no slot), `refused` (owner told), `buried`."""

WORKER_SEQUENCES = Counter(
    "busway_worker_sequences",
    "Sequences that left the engine, by how they ended.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: a finish reason, `cancelled`, or `handed_back` (its owner may try another worker)."""

WORKER_TOKENS = Counter("busway_worker_tokens", "Tokens generated.", registry=REGISTRY)

WORKER_STEP_SECONDS = Histogram(
    "busway_worker_step_seconds",
    "Duration of an engine step.",
    buckets=(0.001, 0.004, 0.016, 0.064, 0.256, 1.0),
    registry=REGISTRY,
)

WORKER_RUNNING = Gauge("busway_worker_running_sequences", "Sequences that the engine computes.", registry=REGISTRY)

WORKER_WAITING = Gauge("busway_worker_waiting_sequences", "Sequences accepted, not computed yet.", registry=REGISTRY)

WORKER_FREE_BLOCKS = Gauge("busway_worker_free_blocks", "KV blocks that the engine can hand out.", registry=REGISTRY)
