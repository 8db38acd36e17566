"""Pure. What a load run is asked and what it answers."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One closed-loop run: `streams` connections, each sending its next request when the last is answered.

    It ends after `requests` requests or after `duration_s`, whichever comes first (None: not bounded by it); requests
    in flight are read to their end, each for at most `timeout_s`. It is given up after `max_failures` failures.
    """

    url: str
    model: str
    streams: Annotated[int, msgspec.Meta(ge=1, le=16_384)] = 32
    requests: Annotated[int, msgspec.Meta(ge=1)] | None = None
    duration_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = 10.0
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 64
    prompt_words: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256
    has_identical_prompts: bool = False
    seed: int = 0
    endpoint: Literal["chat", "completions"] = "chat"
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    max_failures: Annotated[int, msgspec.Meta(ge=1)] = 100
    api_key: Annotated[str, msgspec.Meta(pattern=r"^[!-~]*$")] = ""
    tls_ca: str = ""
    """PEM file of who signed the certificate of an https URL; empty: one of those that this machine trusts."""


class Percentiles(msgspec.Struct, frozen=True):
    """p50, p90 and p99 of `count` samples, in seconds; zeros without samples."""

    count: int
    p50_s: float
    p90_s: float
    p99_s: float


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a load run saw.

    `num_tokens` is what the servers' usage chunks say (where a response had none: its events with content).
    `itl` holds the gaps between arrivals: several events read at once are one arrival. `failures` counts requests by
    reason, `first_failure` quotes one. `cpu_s` is the load generator's own CPU time while it sent and received.
    """

    num_ok: int
    num_failed: int
    failures: dict[str, int]
    first_failure: str
    num_tokens: int
    num_events: int
    wall_s: float
    cpu_s: float
    ttft: Percentiles
    itl: Percentiles
    e2e: Percentiles

    @property
    def tokens_per_s(self) -> float:
        """Streamed tokens per second of wall time."""
        return self.num_tokens / self.wall_s if self.wall_s else 0.0


def compute_percentiles(samples_ns: Sequence[int]) -> Percentiles:
    """Return nearest-rank percentiles of samples in nanoseconds, in any order."""
    ordered = sorted(samples_ns)

    def pick_s(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e9 if ordered else 0.0

    return Percentiles(len(ordered), pick_s(0.50), pick_s(0.90), pick_s(0.99))
