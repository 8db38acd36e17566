"""Pure. Put two systems side by side: cost by role and for the whole path, with ratios."""

from collections.abc import Sequence

from components.bench.report import Cost, Round, align, compute_cost
from components.bench.results import LoadResult


def sum_by_role(round_: Round) -> dict[str, Cost]:
    """Return the cost of each role, and of the whole path as the last."""
    roles = [sample.process.role for sample in round_.long.samples]
    costs = {
        role: compute_cost(round_, role, [index for index, other in enumerate(roles) if other == role])
        for role in dict.fromkeys(roles)
    }
    return {**costs, "whole path": compute_cost(round_, "whole path", range(len(roles)))}


def render_comparison(title: str, peer_name: str, peer: Round, busway: Round) -> str:
    """Return a table of both systems at one concurrency; a ratio is Busway's cost over the peer's."""
    ours, theirs = sum_by_role(busway), sum_by_role(peer)
    roles = [role for role in dict.fromkeys([*theirs, *ours]) if role != "whole path"]
    rows = [
        ["CPU us", *(f"{what} {who}" for what in ("token", "request", "extra token") for who in ("peer", "ours", "x"))]
    ]
    rows += [[role, *_render_pair(theirs.get(role), ours.get(role))] for role in [*roles, "whole path"]]
    times = [
        [
            "ms, tokens/s",
            "TTFT p50",
            "TTFT p99",
            "ITL p50",
            "ITL p99",
            "tokens/s",
            "requests",
            "failed",
            "tokens/arrival",
        ],
        [peer_name, *_render_load(peer.long.load)],
        ["Busway", *_render_load(busway.long.load)],
    ]
    return "\n".join([title, *align(rows), "", *align(times)])


def _render_pair(theirs: Cost | None, ours: Cost | None) -> Sequence[str]:
    cells = []
    for pick, digits in ((_token_us, 1), (_request_us, 0), (_extra_token_us, 1)):
        peer_us, our_us = (pick(cost) if cost else None for cost in (theirs, ours))
        cells += [_render_number(peer_us, digits), _render_number(our_us, digits)]
        cells.append(f"{our_us / peer_us:.2f}" if peer_us and our_us is not None else "")
    return cells


def _render_number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _render_load(load: LoadResult) -> list[str]:
    times_s = (load.ttft.p50_s, load.ttft.p99_s, load.itl.p50_s, load.itl.p99_s)
    arrivals = load.ttft.count + load.itl.count
    counts = [f"{load.tokens_per_s:.0f}", str(load.num_ok), str(load.num_failed)]
    return [*(f"{value_s * 1e3:.1f}" for value_s in times_s), *counts, f"{load.num_tokens / max(1, arrivals):.1f}"]


def _token_us(cost: Cost) -> float:
    return cost.token_us


def _request_us(cost: Cost) -> float:
    return cost.request_us


def _extra_token_us(cost: Cost) -> float:
    return cost.extra_token_us
