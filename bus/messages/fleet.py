"""Pure. Who is there: cards in the registry, load reports, dead letters."""

from bus.messages.base import Fact, Hot
from bus.messages.inference import Role
from bus.messages.kv import Tier


class WorkerCard(Fact, frozen=True, kw_only=True, tag="worker_card"):
    """One worker process, kept in the registry for as long as it lives."""

    worker: str
    model: str
    engine: str
    roles: list[Role]
    slots: int
    """Requests that it takes at a time."""
    block_size: int
    num_blocks: int
    max_model_len: int
    host: str
    pid: int
    version: str
    started_at: float
    max_running: int = 0
    """Requests that can be in one engine step; 0: as many as there are slots."""
    takes_early: bool = False
    """It knows early offers (`Handover.is_early`); an older worker would take them for requests."""


class ModelCard(Fact, frozen=True, kw_only=True, tag="model_card"):
    """A model as its workers serve it; any of them keeps the card alive."""

    model: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    files: dict[str, str]
    """Tokenizer and template files that a frontend needs: name to blob digest."""
    created_at: float


class FrontendCard(Fact, frozen=True, kw_only=True, tag="frontend_card"):
    """One frontend process."""

    frontend: str
    url: str
    host: str
    pid: int
    version: str
    started_at: float


class RouterCard(Fact, frozen=True, kw_only=True, tag="router_card"):
    """One router process: while one lives, frontends send requests to `REQ`."""

    router: str
    models: list[str] = []
    """Names of the models that it routes; empty: all."""
    host: str
    pid: int
    version: str
    started_at: float


class StepSample(Hot, frozen=True):
    """What one engine step did and how long it took."""

    duration_s: float
    prefill_tokens: int
    decode_requests: int
    kv_tokens: int
    """Context length summed over the decoding sequences."""


class TierRate(Hot, frozen=True):
    """What loading from one tier costs a worker, as measured lately; a tier that is out of order is not told."""

    tier: Tier
    owner: str
    """Which tier of those that workers share, as in `TierBatch`; empty: the worker's own."""
    latency_s: float
    """Of any load."""
    token_s: float
    """Of the KV of each token, beside that."""


class WorkerLoad(Fact, frozen=True, kw_only=True, tag="worker_load"):
    """How busy a worker is: its heartbeat, every 250 ms and on change."""

    worker: str
    model: str
    running: int
    waiting: int
    free_blocks: int
    num_blocks: int
    prefill_tokens: int
    """Prompt tokens accepted and not computed yet."""
    step_s: float
    """Duration of the last engine step."""
    at: float
    kv_epoch: int = 0
    """Numbering of the worker's KV batches, as in `KvBatch`; 0: it publishes none."""
    kv_seq: int = 0
    """Number that the next event will have."""
    kv_count: int = 0
    """Blocks held in the device tier."""
    kv_xor: int = 0
    """Xor of their hashes."""
    waiting_tokens: int = 0
    """The part of `prefill_tokens` whose sequences did not start yet; what is cached of them is counted, too."""
    steps: list[StepSample] = []
    """Engine steps since the last report, evenly thinned to at most 64."""
    tiers: list[TierRate] = []
    """Those below the device that it can load from at present."""
    roles: list[Role] = []
    """As on its card, where they change."""
    fetch_token_s: float = 0.0
    """Seconds that the KV of a token took lately to come from a worker that prefilled it."""
    fetch_s: float = 0.0
    """Seconds that any such read took, however little it was; both 0: there was none."""
    taken: int = 0
    """Slots that are taken, also by what the engine is through with and nobody has fetched yet."""


class MetricsQuery(Fact, frozen=True, kw_only=True, tag="metrics_query"):
    """Asks a process for its `ProcessMetrics`."""


class ProcessMetrics(Fact, frozen=True, kw_only=True, tag="process_metrics"):
    """What one process counts, in the text format of Prometheus."""

    process: str
    text: str


class DeadLetter(Fact, frozen=True, kw_only=True, tag="dead_letter"):
    """A message that could not be handled, kept for a person to look at."""

    subject: str
    code: str
    reason: str
    payload: bytes
    """At most the first 64 KiB."""
    died_at: float
