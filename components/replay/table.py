"""Pure. A replay's report as text."""

from components.replay.bound import Bound
from components.replay.report import Latency, Report


def render_report(report: Report, bound: Bound | None) -> str:
    """Return a few lines for a terminal, without a newline at the end."""
    lines = [
        f"{report.num_finished} of {report.num_requests} requests finished in {report.duration_s:.1f} s: "
        f"{report.prompt_tokens} prompt tokens, {report.output_tokens} output tokens"
    ]
    if report.failures:
        reasons = ", ".join(f"{count} x {code}" for code, count in sorted(report.failures.items()))
        lines.append(f"  {report.num_refused} refused, {report.num_failed} failed: {reasons}")
    if report.num_retried:
        lines.append(f"  {report.num_retried} needed more than one attempt")
    latencies = [("TTFT", report.ttft), ("ITL", report.itl), ("end to end", report.e2e)]
    if bound is not None and report.num_finished:
        latencies.insert(1, (" at best *", bound.ttft))
    lines += [
        "",
        f"  {'ms':<12}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
        *(_render_latency(name, latency) for name, latency in latencies),
        "",
        f"  prefix reuse   {report.reuse:.4f} of the prompt tokens" + _render_bound(report, bound),
        f"  goodput        {report.goodput:.3f} requests/s met the goal, {report.good_share:.1%} of all",
        f"  load spread    most over mean by worker: requests {report.spread.requests:.2f}, "
        f"computed prompt tokens {report.spread.computed_tokens:.2f}, output tokens {report.spread.output_tokens:.2f}",
    ]
    if bound is not None and report.num_finished:
        lines.append(
            "  * every prompt alone on an idle worker, with all the reuse that a clairvoyant cache would give it"
        )
    return "\n".join(lines)


def _render_latency(name: str, latency: Latency) -> str:
    values = (latency.mean_s, latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)
    return f"  {name:<12}" + "".join(f"{value_s * 1e3:>10.1f}" for value_s in values)


def _render_bound(report: Report, bound: Bound | None) -> str:
    if bound is None or not bound.infinite:
        return ""
    return (
        f"; at best {bound.clairvoyant:.4f} in this much cache (clairvoyant), {bound.infinite:.4f} in any: "
        f"{report.reuse / bound.clairvoyant:.0%} of what can be"
    )
