"""Pure. What loading a prefix from tiers below the device saves, beside computing it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bus.messages.fleet import TierRate
from kv_events.index import TIERS, Overlap
from kv_events.shared import Span, reach


class Load(NamedTuple):
    """A piece of a prompt's prefix that a worker can load from one tier; pieces follow each other."""

    tokens: int
    token_s: float
    latency_s: float


NO_LOADS: tuple[Load, ...] = ()


def find_loads(
    overlap: Overlap, shared: Mapping[str, list[Span]], rates: Sequence[TierRate], block_size: int
) -> tuple[Load, ...]:
    """Return what follows the prefix on the device of a worker, tier by tier, the cheapest of the shared ones first.

    `rates` is what the worker told of its tiers: one that it does not name, it cannot load from now. A tier whose turn
    comes later than where its blocks lie counts from there on no more, so a prefix that goes to and fro between shared
    tiers is seen shorter than it is.
    """
    loads: list[Load] = []
    at = overlap.device
    for tier, end in zip(TIERS[1:], overlap[1:], strict=True):
        if end > at:
            rate = next((rate for rate in rates if rate.tier == tier and not rate.owner), None)
            if rate is None:
                return tuple(loads)
            loads.append(Load((end - at) * block_size, rate.token_s, rate.latency_s))
            at = end
    if shared:
        for rate in sorted(rates, key=_token_s):
            end = reach(at, shared.get(rate.owner, ())) if rate.owner else at
            if end > at:
                loads.append(Load((end - at) * block_size, rate.token_s, rate.latency_s))
                at = end
    return tuple(loads)


def best_load(loads: Sequence[Load], token_s: float) -> tuple[float, int]:
    """Return the seconds that loading saves, where a token costs `token_s` to compute, and the tokens to load for that.

    As much is loaded as pays: a prefix is loaded from its beginning, so a slow piece may be worth it for a fast one
    behind it.
    """
    best, saved_s, tokens = (0.0, 0), 0.0, 0
    for load in loads:
        saved_s += (token_s - load.token_s) * load.tokens - load.latency_s
        tokens += load.tokens
        if saved_s > best[0]:
            best = saved_s, tokens
    return best


def _token_s(rate: TierRate) -> float:
    return rate.token_s
