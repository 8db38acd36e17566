"""Pure. Turn CPU readings and load results into costs per token and per request, and into a table."""

from collections.abc import Sequence

import msgspec

from components.bench.results import LoadResult, Percentiles


class Process(msgspec.Struct, frozen=True):
    """A process of the system under test; `role` is what the totals are grouped by (frontend, worker, nats, ...)."""

    name: str
    role: str
    pid: int


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True):
    """CPU seconds of one process before and after a load run, and its resident memory after it."""

    process: Process
    cpu_before_s: float
    cpu_after_s: float
    rss_bytes: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load run with the samples of every process around it, in the same order in every run."""

    load: LoadResult
    samples: tuple[ProcessSample, ...]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The two runs at one concurrency: `long` streams `max_tokens` a request, `single` one token a request."""

    streams: int
    long: Run
    single: Run


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU cost of one process, or of a sum of them, in microseconds.

    `token_us` is the whole long run over its tokens, the requests' share included. `request_us` is a request with one
    token, from the single run. `extra_token_us` is what each further token adds: the difference of both.
    """

    name: str
    token_us: float
    request_us: float
    extra_token_us: float
    rss_bytes: int


def compute_cost(round_: Round, name: str, indexes: Sequence[int]) -> Cost:
    """Return the cost of the processes at `indexes` together; zeros where nothing was served."""
    long, single = round_.long, round_.single
    long_us = sum(_used_us(long.samples[index]) for index in indexes)
    single_us = sum(_used_us(single.samples[index]) for index in indexes)
    request_us = _divide(single_us, single.load.num_ok)
    tokens_more = _divide(long.load.num_tokens, long.load.num_ok) - _divide(single.load.num_tokens, single.load.num_ok)
    return Cost(
        name=name,
        token_us=_divide(long_us, long.load.num_tokens),
        request_us=request_us,
        extra_token_us=_divide(_divide(long_us, long.load.num_ok) - request_us, tokens_more),
        rss_bytes=sum(long.samples[index].rss_bytes for index in indexes),
    )


def compute_costs(round_: Round) -> list[Cost]:
    """Return the cost of each process, of each role with several, and of the whole path as the last."""
    processes = [sample.process for sample in round_.long.samples]
    costs = [compute_cost(round_, process.name, [index]) for index, process in enumerate(processes)]
    for role in dict.fromkeys(process.role for process in processes):
        indexes = [index for index, process in enumerate(processes) if process.role == role]
        if len(indexes) > 1:
            costs.append(compute_cost(round_, f"all {role} ({len(indexes)})", indexes))
    return [*costs, compute_cost(round_, "whole path", range(len(processes)))]


def render_round(round_: Round) -> str:
    """Return the table of one concurrency as text, without a newline at the end."""
    costs = compute_costs(round_)
    load, generator_us = round_.long.load, _divide(round_.long.load.cpu_s * 1e6, round_.long.load.num_tokens)
    rows = [
        ["CPU time of", "us/token", "us/request", "us/extra token", "RSS MB"],
        *([cost.name, *_render_cost(cost), f"{cost.rss_bytes / 1e6:.0f}"] for cost in costs),
        ["(load generator)", f"{generator_us:.1f}", "", "", ""],
    ]
    lines = [
        f"{round_.streams} streams: {load.num_ok} requests, {load.num_tokens} tokens in {load.wall_s:.1f} s"
        f" = {load.tokens_per_s:.0f} tokens/s; {round_.single.load.num_ok} requests of one token",
        *render_failures(round_.long.load),
        *render_failures(round_.single.load),
        *align(rows),
        "",
        *align([["ms", "p50", "p90", "p99"], *(_render_times(name, p) for name, p in _list_times(load))]),
    ]
    return "\n".join(lines)


def render_failures(load: LoadResult) -> list[str]:
    """Return lines that say what failed, none when nothing did."""
    if not load.num_failed:
        return []
    reasons = ", ".join(f"{count} x {reason}" for reason, count in load.failures.items())
    return [f"  {load.num_failed} requests FAILED: {reasons}", f"  first: {load.first_failure.strip()}"]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines: first column to the left, the others to the right; a rule under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return [lines[0], "  " + "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _render_cost(cost: Cost) -> list[str]:
    return [f"{cost.token_us:.1f}", f"{cost.request_us:.0f}", f"{cost.extra_token_us:.1f}"]


def _list_times(load: LoadResult) -> list[tuple[str, Percentiles]]:
    return [("TTFT", load.ttft), ("ITL", load.itl), ("end to end", load.e2e)]


def _render_times(name: str, times: Percentiles) -> list[str]:
    return [name, *(f"{value_s * 1e3:.2f}" for value_s in (times.p50_s, times.p90_s, times.p99_s))]


def _used_us(sample: ProcessSample) -> float:
    return (sample.cpu_after_s - sample.cpu_before_s) * 1e6


def _divide(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
