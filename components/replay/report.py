"""Pure. What a replay showed: latencies, goodput, prefix reuse, and how evenly the workers were loaded."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from components.replay.book import GAPS_PER_S, Outcome


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and nearest-rank percentiles, in seconds; zeros without samples."""

    mean_s: float = 0.0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What a good request is: first token and mean gap between tokens at most so late."""

    ttft_s: float = 1.0
    itl_s: float = 0.025


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How uneven the workers' shares are: the largest over the mean (1: even)."""

    requests: float
    computed_tokens: float
    """Prompt tokens that were not cached."""
    output_tokens: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One replay. Rates are per second of simulated (or live) time from the first arrival to the last end."""

    num_requests: int
    num_finished: int
    num_refused: int
    num_failed: int
    failures: dict[str, int]
    """Refused and failed requests by code."""
    num_retried: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    reuse: float
    """Cached share of the prompt tokens of finished requests."""
    ttft: Latency
    itl: Latency
    e2e: Latency
    goodput: float
    """Finished requests that met the goal, per second."""
    good_share: float
    """Of all requests, those that finished and met the goal."""
    spread: Spread


def make_report(outcomes: Sequence[Outcome], gaps: Counter[int], num_workers: int, goal: Goal) -> Report:
    """Sum up; `gaps` counts gaps between tokens as `Book.gaps` does. Workers that served nothing count as idle."""
    finished = [outcome for outcome in outcomes if outcome.ending == "finished"]
    unserved = [outcome for outcome in outcomes if outcome.ending != "finished"]
    prompt_tokens = sum(outcome.prompt_tokens for outcome in finished)
    cached_tokens = sum(outcome.cached_tokens for outcome in finished)
    num_good = sum(_is_good(outcome, goal) for outcome in finished)
    starts = [outcome.at_s for outcome in outcomes]
    duration_s = max((o.at_s + o.e2e_s for o in outcomes), default=0.0) - min(starts, default=0.0)
    return Report(
        num_requests=len(outcomes),
        num_finished=len(finished),
        num_refused=sum(outcome.ending == "refused" for outcome in outcomes),
        num_failed=sum(outcome.ending == "failed" for outcome in outcomes),
        failures=dict(Counter(outcome.code for outcome in unserved)),
        num_retried=sum(outcome.num_attempts > 1 for outcome in outcomes),
        duration_s=duration_s,
        prompt_tokens=prompt_tokens,
        output_tokens=sum(outcome.output_tokens for outcome in finished),
        cached_tokens=cached_tokens,
        reuse=_ratio(cached_tokens, prompt_tokens),
        ttft=compute_latency(outcome.ttft_s for outcome in finished),
        itl=compute_gaps(gaps),
        e2e=compute_latency(outcome.e2e_s for outcome in finished),
        goodput=_ratio(num_good, duration_s),
        good_share=_ratio(num_good, len(outcomes)),
        spread=Spread(
            requests=_unevenness(finished, num_workers, lambda _: 1),
            computed_tokens=_unevenness(finished, num_workers, lambda o: o.prompt_tokens - o.cached_tokens),
            output_tokens=_unevenness(finished, num_workers, lambda o: o.output_tokens),
        ),
    )


def compute_latency(samples_s: Iterable[float]) -> Latency:
    """Return mean and percentiles of samples in any order."""
    ordered = sorted(samples_s)
    if not ordered:
        return Latency()

    def pick(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Latency(
        mean_s=math.fsum(ordered) / len(ordered), p50_s=pick(0.5), p90_s=pick(0.9), p99_s=pick(0.99), max_s=ordered[-1]
    )


def compute_gaps(gaps: Counter[int]) -> Latency:
    """Return mean and percentiles of counted gaps."""
    total = gaps.total()
    if not total:
        return Latency()
    ordered = sorted(gaps.items())
    ranks = {share: max(1, math.ceil(share * total)) for share in (0.5, 0.9, 0.99)}
    picked: dict[float, float] = {}
    num_seen = 0
    for gap, count in ordered:
        num_seen += count
        for share, rank in ranks.items():
            if num_seen >= rank:
                picked.setdefault(share, gap / GAPS_PER_S)
    mean_s = sum(gap * count for gap, count in ordered) / total / GAPS_PER_S
    return Latency(
        mean_s=mean_s, p50_s=picked[0.5], p90_s=picked[0.9], p99_s=picked[0.99], max_s=ordered[-1][0] / GAPS_PER_S
    )


def _is_good(outcome: Outcome, goal: Goal) -> bool:
    gap_s = (outcome.e2e_s - outcome.ttft_s) / max(1, outcome.output_tokens - 1)
    return outcome.ttft_s <= goal.ttft_s and gap_s <= goal.itl_s


def _unevenness(outcomes: Iterable[Outcome], num_workers: int, weigh: Callable[[Outcome], int]) -> float:
    shares: Counter[str] = Counter()
    for outcome in outcomes:
        shares[outcome.worker] += weigh(outcome)
    return _ratio(max(shares.values(), default=0) * max(num_workers, len(shares)), shares.total())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
