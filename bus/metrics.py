"""I/O. Every metric of every process, in one registry; a process shows those that it moves.

Names start with `busway_`, units are seconds and bytes, labels come from closed sets. Declare here, use there:
`from bus.metrics import MALFORMED_MESSAGES`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

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
"""`outcome`: `accepted`, `repeated` (came before, or was cancelled), `returned` (no slot), `refused` (owner told),
`buried`, `early` (what to fetch of a prompt that is still being computed)."""

WORKER_SEQUENCES = Counter(
    "busway_worker_sequences",
    "Sequences that left the engine, by how they ended.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: a finish reason, `cancelled`, `expired` (at its deadline), or `handed_back` (for another worker),
or `handed_over` (prefilled, to one that decodes)."""

WORKER_HANDOVERS = Counter(
    "busway_worker_handovers",
    "Sequences that were prefilled for another worker, by how the lease of their blocks ended.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: `released` (by who read them), `expired`, `withdrawn`, or `failed` (there was none)."""

WORKER_FETCHES = Counter(
    "busway_worker_fetches",
    "Sequences that another worker had prefilled, by what became of its blocks.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: `read`, `early` (some, while others were still computed), `unneeded` (the cache had them, or nobody waits
any more), or `failed` (computed again)."""

WORKER_PREFILL_TOKENS = Counter(
    "busway_worker_prefill_tokens",
    "Tokens of prompts that were computed: neither cached nor fetched.",
    registry=REGISTRY,
)

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

KV_ANSWERS = Counter("busway_kv_answers", "Answers of this worker to readers that missed KV events.", registry=REGISTRY)

# Transfer of KV blocks between workers

TRANSFER_READS = Counter(
    "busway_transfer_reads",
    "Reads of KV blocks that a peer offered, by what became of them.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: `read`, `failed` (peer gone), `stale` (the lease had ended), `timeout`, `cancelled`."""

TRANSFER_BLOCKS = Counter("busway_transfer_blocks", "KV blocks read from peers and used.", registry=REGISTRY)

TRANSFER_BYTES = Counter("busway_transfer_bytes", "Bytes of these blocks.", registry=REGISTRY)

TRANSFER_LEASES = Counter(
    "busway_transfer_leases",
    "Leases of KV blocks that ended, by how.",
    ["outcome"],
    registry=REGISTRY,
)
"""`outcome`: `released` (by a reader), `expired`, `withdrawn`."""

TRANSFER_OPEN_LEASES = Gauge("busway_transfer_open_leases", "Leases of KV blocks that are out.", registry=REGISTRY)

# KV offload

OFFLOAD_BLOCKS = Counter(
    "busway_offload_blocks",
    "KV blocks that a tier was asked for or given, by what became of them.",
    ["tier", "outcome"],
    registry=REGISTRY,
)
"""`tier`: `host`, `disk`, `redis`, `s3`, `peer`. `outcome`: `loaded`, `missed` (not there, though believed), `broken`
(of a wrong checksum), `stored`, `dropped` (no room, not admitted, or too many waited), `evicted`."""

OFFLOAD_BYTES = Counter("busway_offload_bytes", "Bytes of blocks.", ["tier", "direction"], registry=REGISTRY)
"""`direction`: `load`, `store`."""

OFFLOAD_SECONDS = Counter("busway_offload_seconds", "Time of moves.", ["tier", "direction"], registry=REGISTRY)

OFFLOAD_LATE = Counter(
    "busway_offload_late",
    "Loads that were not waited for to the end: the rest was computed.",
    ["tier"],
    registry=REGISTRY,
)

OFFLOAD_SAVED_TOKENS = Counter(
    "busway_offload_saved_tokens", "Prompt tokens loaded instead of computed.", ["tier"], registry=REGISTRY
)

OFFLOAD_HELD_BLOCKS = Gauge("busway_offload_held_blocks", "KV blocks in a tier.", ["tier"], registry=REGISTRY)

# Readers of KV events

KV_EVENTS = Counter("busway_kv_events", "KV events that went into the index.", registry=REGISTRY)

KV_GAPS = Counter(
    "busway_kv_gaps",
    "Times that the index of a worker was found to be wrong, by what showed it.",
    ["reason"],
    registry=REGISTRY,
)
"""`reason`: `missing` (numbers of events), `digest` (number and xor of the blocks)."""

KV_QUERIES = Counter("busway_kv_queries", "Questions to workers about missed KV events.", registry=REGISTRY)

# Frontend

FRONTEND_IN_FLIGHT = Gauge("busway_frontend_requests_in_flight", "Generations in flight.", registry=REGISTRY)

FRONTEND_RETRIES = Counter(
    "busway_frontend_retries",
    "Attempts after the first one of a request, by what ended the attempt before.",
    ["reason"],
    registry=REGISTRY,
)
"""`reason`: `gap`, `failed`, `worker_lost`, `untaken` (its worker never accepted), `silent`, `draining`,
`broker_lost`, `bus_unavailable`, `router_lost`, `aborted`."""

FRONTEND_DROPPED_TOKENS = Counter(
    "busway_frontend_dropped_tokens",
    "Tokens that were not the next of a live attempt.",
    ["reason"],
    registry=REGISTRY,
)
"""`reason`: `duplicate` (offset taken before), `stale` (nobody's ticket)."""

FRONTEND_CANCELS = Counter("busway_frontend_cancels", "Tickets that a worker was told to drop.", registry=REGISTRY)

FRONTEND_USAGE_LOST = Counter("busway_frontend_usage_lost", "Usage records that were not stored.", registry=REGISTRY)


class DoublingHistogram(Collector):
    """A histogram for what happens often, at a tenth of the cost: `counts[i]` are values below `2**i / SCALE`.

    Where even a call is too much (per token), whoever observes does what `observe` does.
    """

    SCALE = 4096
    NUM_SHOWN = 22
    """Buckets that are shown one by one: up to 512 s."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self.counts = [0] * 64
        self.sum = 0.0
        REGISTRY.register(self)

    def observe(self, value: float) -> None:
        """Add one value that is not negative."""
        self.counts[int(value * self.SCALE).bit_length()] += 1
        self.sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Return the buckets as Prometheus counts them, each with all below it."""
        total = 0
        buckets = []
        for power, count in enumerate(self.counts[: self.NUM_SHOWN]):
            total += count
            buckets.append((repr(2**power / self.SCALE), float(total)))
        buckets.append(("+Inf", float(sum(self.counts))))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self.sum)


class Tally(Collector):
    """A counter for what happens often: whoever counts adds to `counts`, by the values of its one label."""

    def __init__(self, name: str, documentation: str, label: str, values: Iterable[str]) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self.counts = dict.fromkeys(values, 0)
        REGISTRY.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the counts as Prometheus knows them."""
        family = CounterMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, count in self.counts.items():
            family.add_metric([value], float(count))
        yield family


class PairTally(Collector):
    """As `Tally`, by two labels whose values nobody lists before."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, str]) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self.counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        REGISTRY.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the counts as Prometheus knows them."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in list(self.counts.items()):
            family.add_metric(values, float(count))
        yield family


TRANSFER_WAIT = DoublingHistogram("busway_transfer_wait_seconds", "Time that a read of KV blocks waited for its turn.")
TRANSFER_SECONDS = DoublingHistogram(
    "busway_transfer_seconds", "Time from its turn to the end of a read that was used."
)

FRONTEND_REQUESTS = PairTally(
    "busway_frontend_requests",
    "Requests that were answered, by endpoint and HTTP status.",
    ("endpoint", "status"),
)
"""`endpoint`: a route of ours, `ask` (NATS) or `other`; `status`: as in HTTP, 499 where the client went away."""

FRONTEND_GENERATIONS = Tally(
    "busway_frontend_generations",
    "Generations that ended, by how.",
    "outcome",
    ("stop", "length", "abort", "cancelled", "failed"),
)
"""`outcome`: a finish reason, `cancelled` or `failed`."""

FRONTEND_TOKENS = Tally(
    "busway_frontend_tokens", "Tokens of ended generations.", "kind", ("prompt", "cached", "output")
)
"""`kind`: `prompt`, `cached` (part of `prompt`), `output`."""

FRONTEND_TTFT = DoublingHistogram(
    "busway_frontend_time_to_first_token_seconds", "Time from a request to its first token."
)
FRONTEND_ITL = DoublingHistogram("busway_frontend_inter_token_seconds", "Time between two tokens of a request.")
FRONTEND_DURATION = DoublingHistogram("busway_frontend_generation_seconds", "Time from a request to its last token.")

# Router

ROUTER_REQUESTS = Tally(
    "busway_router_requests",
    "Requests that this router decided about, by what became of them.",
    "outcome",
    ("placed", "refused", "expired", "withdrawn", "rescued", "buried"),
)
"""`outcome`: `placed`, `refused` (would wait too long), `expired` (waited too long), `withdrawn` (the lane did not take
it: it waits again), `rescued` (its worker died before it accepted), `buried`."""

ROUTER_WAITING = Gauge("busway_router_waiting_requests", "Requests that wait for a worker.", registry=REGISTRY)

ROUTER_WORKERS = Gauge("busway_router_workers", "Workers that requests can go to.", registry=REGISTRY)

ROUTER_PREFILLS = Counter(
    "busway_router_prefills",
    "Prompts for which there was a choice who computes them.",
    ["where"],
    registry=REGISTRY,
)
"""`where`: `remote` (a worker that only prefills), `local` (the one that decodes)."""

ROUTER_TOKENS = Tally(
    "busway_router_prompt_tokens", "Prompt tokens of placed requests.", "kind", ("cached", "computed")
)
"""`kind`: `cached` (its worker should hold them), `computed`."""

ROUTER_WAIT = DoublingHistogram("busway_router_wait_seconds", "Time that a placed request waited for room.")

ROUTER_PICKS = Counter(
    "busway_router_picks", "Questions of gateways which worker to take, by answer.", ["outcome"], registry=REGISTRY
)
"""`outcome`: `answered`, `no_worker`, `malformed`."""
