"""Pure. The one configuration tree: defaults < TOML < environment < `--set`."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bus.errors import BadConfig
from bus.messages.inference import Role

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=0)]
ParserName = Literal[
    "auto",
    "none",
    "deepseek",
    "deepseek_v32",
    "glm",
    "gpt_oss",
    "granite",
    "hermes",
    "kimi",
    "llama3",
    "minimax_m1",
    "minimax_m2",
    "mistral",
    "qwen3_coder",
]
Gap = Annotated[float, Meta(ge=0, le=1.0)]

ENV_PREFIX = "BUSWAY__"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: immutable, closed to unknown keys."""


class BusConfig(_Section, frozen=True, kw_only=True):
    """How to reach the broker."""

    url: str = "nats://127.0.0.1:4222"
    connect_timeout_s: Positive = 5.0
    """How long a process waits for the broker at its start before it gives up."""
    credentials_file: str = ""
    """What `busway keys bus` made for this process; empty: a broker that asks for nothing."""
    tls_ca: str = ""
    """PEM file of who signed the certificate of a tls:// broker; empty: one of those that this machine trusts."""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies of streams and buckets that must outlive a broker, in a cluster of at least as many."""
    monitor_url: str = ""
    """HTTP monitoring address of the server, when it has one."""


class FrontendConfig(_Section, frozen=True, kw_only=True):
    """The HTTP and NATS doors."""

    host: str = "127.0.0.1"
    port: Port = 8000
    max_body_bytes: Count = 8 * 2**20
    max_header_bytes: Count = 32 * 2**10
    max_requests: Count = 4096
    """Requests in flight; one more is answered 429."""
    default_max_tokens: Annotated[int, Meta(ge=0)] = 0
    """Output bound of a request that names none; 0: what the context leaves, as OpenAI does and agents expect."""
    parser: ParserName = "auto"
    """How tool calls and reasoning are read: auto goes by the model's chat template; a family's name; none."""
    parsers: dict[str, ParserName] = {}
    """The same for single models, by name."""
    max_attempts: Count = 5
    accept_timeout_s: Positive = 30.0
    """How long a request may wait for a worker to accept it."""
    max_queue_s: Positive = 10.0
    """Where requests wait for a worker so long already, new ones of their class are answered 429 at once."""
    worker_timeout_s: Positive = 3.0
    """A worker that is silent for so long is dead: its requests go elsewhere."""
    write_gap_s: Gap = 0.03
    """Tokens that a stream gets faster than that are written together, but for the first. 0: each at once."""
    keep_alive_s: Positive = 10.0
    """A stream that shows nothing for so long, once a worker has it, gets a comment: proxies cut what is silent."""
    strict_params: bool = False
    """Unknown parameters of a body are errors; else they are ignored, and named in x-busway-ignored-params."""
    slow_client_bytes: Count = 256 * 2**10
    """Unsent bytes after which a client that does not read is cut off."""
    max_connections: Count = 16_384
    """Open connections; one more is answered 503."""
    keys: str = ""
    """API keys: a file that `busway keys` writes, or `bucket` for those on the bus. Empty: nobody needs one."""
    open_paths: tuple[str, ...] = ("/live", "/ready", "/health")
    """Routes that need no key; add /metrics where the scraper has none."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call this server, or `*`."""
    tls_cert: str = ""
    """PEM file with the certificate chain; with `tls_key`, HTTPS instead of HTTP, from TLS 1.2 on."""
    tls_key: str = ""
    shares_port: bool = False
    """Let other frontends listen on the same port: new connections spread over all of them."""


class WorkerConfig(_Section, frozen=True, kw_only=True):
    """A worker and its engine."""

    model: str = "builtin"
    """`builtin`, or a directory with config.json, safetensors and tokenizer.json."""
    served_name: str = ""
    """Name that clients use; empty: the directory's name, or `busway-tiny`."""
    engine: Literal["torch", "mock"] = "torch"
    roles: tuple[Role, ...] = ("both",)
    """prefill and decode: one hands its prompts' KV blocks over to the other; both: all of a request."""
    transfer: Literal["auto", "nixl", "loopback"] = "auto"
    """How KV blocks come from other workers; auto: over NIXL where it is installed, else within this host."""
    slots: Count = 256
    """Requests accepted at a time, running and waiting."""
    max_running: Count = 64
    """Sequences in one engine step."""
    max_batch_tokens: Count = 2048
    """Tokens computed in one engine step: prompts longer than that are prefilled in chunks."""
    max_model_len: int = 0
    """0: what the model's config.json says."""
    block_size: Count = 16
    kv_cache_bytes: int = 0
    """0: 512 MiB on a CPU, 80 % of the free memory on a GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; auto takes a GPU when torch sees one."""
    publish_gap_s: Gap = 0.03
    """Steps that follow each other faster than that share a message (first tokens: 4 ms at most). 0: one each."""
    grace_s: Positive = 30.0
    """Time to finish what runs after SIGTERM."""
    canary_s: Annotated[float, Meta(ge=0)] = 10.0
    """An engine that is idle for so long generates a few tokens, to prove itself. 0: never."""
    stall_s: Positive = 60.0
    """An engine that takes so long for one step will not end it: the worker ends. Its requests were given back when the
    step took ten times as long as those before it, and a second at least."""


class RedisTierConfig(_Section, frozen=True, kw_only=True):
    """KV blocks in a Redis (or Valkey) server that all workers share."""

    url: str = ""
    """redis://[user:password@]host:6379/0, rediss://..., or unix:///path?db=0 for a local one. Empty: none."""
    keep_s: Positive = 86_400.0
    """Age at which blocks leave; pinned ones stay longer."""
    timeout_s: Positive = 1.0
    """Bound on each call; one that takes longer is a miss."""
    max_bytes: Bytes = 0
    """What the fleet may store within `keep_s`; 0: no bound but the server's own `maxmemory`."""
    max_salt_bytes: Bytes = 0
    """The same for the blocks under each cache salt: a tenant's, where tenants have salts. 0: no bound."""


class S3TierConfig(_Section, frozen=True, kw_only=True):
    """KV blocks in an object store that all workers share; credentials come from the environment."""

    url: str = ""
    """s3://bucket/prefix, az://container/prefix or gs://bucket/prefix. Empty: none."""
    keep_s: Positive = 7 * 86_400.0
    """Age at which `busway cache gc` removes blocks; pinned ones stay longer."""
    timeout_s: Positive = 5.0
    """Bound on each call; one that takes longer is a miss."""
    max_bytes: Bytes = 0
    """What the fleet may store within `keep_s`; 0: no bound."""
    max_salt_bytes: Bytes = 0
    """The same for the blocks under each cache salt: a tenant's, where tenants have salts. 0: no bound."""


class OffloadConfig(_Section, frozen=True, kw_only=True):
    """Where KV blocks live on that leave the device. A tier is used only while it is measured to beat computing."""

    host_bytes: Bytes = 0
    """Host memory for blocks, of each worker; every other tier needs some. 0: no tiers. Pages are taken when they are
    first used; with the engine on a GPU all at the start, and page-locked."""
    policy: Literal["lru", "s3fifo"] = "lru"
    """Which blocks leave host memory and disk first; s3fifo lets what was used once go sooner."""
    disk_path: str = ".busway/offload"
    """Directory for the disk tier: a local disk, shared by the workers of this machine."""
    disk_bytes: Bytes = 0
    """Size of each worker's file there. It survives the worker. 0: no disk."""
    peers: bool = False
    """Read blocks from the host memory of other workers, which each follows for that: for pools of some tens."""
    redis: RedisTierConfig = RedisTierConfig()
    s3: S3TierConfig = S3TierConfig()

    def limits(self, store: Literal["redis", "s3"]) -> RedisTierConfig | S3TierConfig:
        """Return what is set of a shared store."""
        return self.redis if store == "redis" else self.s3


class MockConfig(_Section, frozen=True, kw_only=True):
    """The mock engine's step-time model, in seconds.

    A step takes `step_base_s`; its prefill adds a base and a parabola in the tokens computed, its decode adds a base,
    so much a sequence, and a parabola in the KV tokens read. The squares serve models fitted elsewhere: all is 0 here.
    """

    step_base_s: float = 0.0
    prefill_base_s: float = 0.0
    """Of each step that computes prompt tokens."""
    prefill_token_s: float = 0.0
    prefill_token_squared_s: float = 0.0
    decode_base_s: float = 0.0
    """Of each step that decodes."""
    decode_sequence_s: float = 0.0
    kv_token_s: float = 0.0
    kv_token_squared_s: float = 0.0
    """May be negative: reading much at once is cheaper a token."""
    num_blocks: Count = 16_384
    block_size: Count = 64
    max_running: Count = 256
    max_batch_tokens: Count = 8192
    max_model_len: Count = 131_072


class RouterConfig(_Section, frozen=True, kw_only=True):
    """How requests find their worker. Without a router they go to whichever worker is free first."""

    mode: Literal["kv", "least_loaded", "power_of_two", "round_robin", "random"] = "kv"
    """kv: where it costs least, in seconds, with what each worker has cached; the others are for comparison."""
    disaggregate: Literal["auto", "always", "never"] = "auto"
    """auto: workers that only prefill compute a prompt where that is quicker; the others are for comparison."""
    temperature_s: Annotated[float, Meta(ge=0)] = 0.0
    """A worker that costs so much more is chosen e times less often; 0: always the cheapest."""
    compute_weight: Positive = 1.2
    """What a second of computing counts, beside one of waiting: those who come later find the worker busy."""
    decode_weight: Annotated[float, Meta(ge=0)] = 0.02
    """What a second counts that the requests which decode at a worker wait for a new prompt there."""
    session_affinity_s: Annotated[float, Meta(ge=0)] = 0.02
    """What it costs to send a session elsewhere than the last time."""
    predicted_ttl_s: Positive = 10.0
    """How long a worker is expected to get the blocks of a prompt that was sent there, before it tells so itself."""
    queue_size: Count = 1024
    """Requests of one model and latency class that wait in one router; more wait in the broker."""
    max_wait_s: Positive = 30.0
    """A request that would wait longer for a worker is refused with 429."""
    tenant_weights: dict[str, Positive] = {}
    """Share of a tenant under saturation, in relation to others; 1 for those that are not named."""
    standard_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Part of the prompt tokens that standard requests get while interactive ones wait."""
    batch_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Part of the prompt tokens that batch requests get while others wait."""
    batch_headroom: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    """Part of the workers, and of each worker's places, that batch requests leave free while there are others."""
    pick_host: str = "127.0.0.1"
    pick_port: Port = 0
    """Where gateways ask over HTTP which worker to take; 0: nowhere."""
    seed: int = 0
    """Of the choice among equal workers, together with the router's id."""


class UpConfig(_Section, frozen=True, kw_only=True):
    """What `busway up` starts."""

    frontends: Count = 1
    workers: Count = 1
    roles: tuple[Role, ...] = ()
    """Role of each worker, in turn; none: `worker.roles`."""
    routers: Annotated[int, Meta(ge=0)] = 0
    nats_port: Port = 4222
    """Port of the embedded server; the next free one is taken when it is busy."""
    with_nats: bool = True
    """False: use the broker at `bus.url`."""
    nats_host: str = "127.0.0.1"
    """Address that the embedded server listens on; another one than this only with `secure`."""
    peers: tuple[str, ...] = ()
    """Brokers of other machines that are one cluster with this one: where they take routes, as host:port."""
    route_port: Port = 6222
    """Where this one does, if it has peers."""
    secure: bool = False
    """Each process has credentials of its own, the bus and HTTP speak TLS; all that needs is made in `state_dir`."""
    credentials_s: Annotated[float, Meta(ge=3)] = 86_400.0
    """How long credentials of these processes last; they are replaced three times as often."""
    names: tuple[str, ...] = ()
    """Host names and addresses by which others reach this machine, for its certificate."""


class LogConfig(_Section, frozen=True, kw_only=True):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, else JSON lines."""


class Config(_Section, frozen=True, kw_only=True):
    """The whole tree."""

    namespace: str = "busway"
    state_dir: str = ".busway"
    """The embedded server's store, process ids and logs."""
    bus: BusConfig = BusConfig()
    frontend: FrontendConfig = FrontendConfig()
    worker: WorkerConfig = WorkerConfig()
    offload: OffloadConfig = OffloadConfig()
    mock: MockConfig = MockConfig()
    router: RouterConfig = RouterConfig()
    up: UpConfig = UpConfig()
    log: LogConfig = LogConfig()
    component: dict[str, Any] = {}
    """Settings of a user's component (`busway run`), checked against its own config type."""


def load_config(
    toml: str = "",
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    *,
    source: str = "config",
) -> Config:
    """Merge the layers into one checked tree; raise `BadConfig` that names the key at fault.

    `toml` is the text of the file, `source` its name for messages; `environment` holds variables
    such as `BUSWAY__WORKER__SLOTS=8`; `settings` are `worker.slots=8`.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{source}: not valid TOML: {error}") from error
    origins: dict[str, str] = {}
    for name, value in sorted((environment or {}).items()):
        if name.startswith(ENV_PREFIX):
            path = name.removeprefix(ENV_PREFIX).lower().split("__")
            _put(tree, path, value, name)
            origins[".".join(path)] = name
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadConfig(f"--set {setting}: write key=value, as in --set worker.slots=8")
        _put(tree, key.strip().split("."), value, f"--set {setting}")
        origins[key.strip()] = f"--set {setting}"
    _check_keys(tree, Config, (), source, origins)
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        reason, _, name = str(error).rstrip("`").partition(" - at `$.")
        raise BadConfig(f"{origins.get(name, source)}: {name}: {reason}") from error


def _put(tree: dict[str, Any], path: Sequence[str], value: str, origin: str) -> None:
    node: Any = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise BadConfig(f"{origin}: {part!r} is a value, not a section")
    node[path[-1]] = _parse(value)


def _parse(text: str) -> Any:
    """Read a value as TOML would, and as a plain string where it is no TOML."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _check_keys(
    tree: Mapping[str, Any],
    section: type[msgspec.Struct],
    path: tuple[str, ...],
    source: str,
    origins: Mapping[str, str],
) -> None:
    """Raise `BadConfig` for keys that do not exist; `origins` says where those come from that are not of `source`."""
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in tree.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            name = ".".join((*path, key))
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(fields))}"
            raise BadConfig(f"{origins.get(name, source)}: unknown configuration key {name!r}; {hint}")
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if not isinstance(value, Mapping):
                raise BadConfig(f"configuration key {'.'.join((*path, key))!r} is a section, not a value")
            _check_keys(value, kind, (*path, key), source, origins)
