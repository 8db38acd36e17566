"""I/O. Every metric of every process, in one registry; a process shows those that it moves.

Names start with `busway_`, units are seconds and bytes, labels come from closed sets. Declare here, use there:
`from bus.metrics import MALFORMED_MESSAGES`.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

REGISTRY = CollectorRegistry(auto_describe=True)
"""Made here, so that nothing outside Busway (the library's own default collectors) gets in."""

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render() -> bytes:
    """Return all metrics in the Prometheus text format, whose media type is `CONTENT_TYPE`."""
    return generate_latest(REGISTRY)


# Bus

MALFORMED_MESSAGES = Counter(
    "busway_malformed_messages",
    "Received messages whose bytes are no message of the expected type.",
    ["family"],
    registry=REGISTRY,
)
"""`family` is the second token of the subject (`out`, `work`, ...), `other` where it is none of ours."""

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
