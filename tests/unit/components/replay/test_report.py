"""Reports add up, also when there is nothing to add."""

from collections import Counter

import msgspec
import pytest

from components.replay.book import GAPS_PER_S, Outcome
from components.replay.bound import Bound
from components.replay.report import Goal, Latency, compute_gaps, compute_latency, make_report
from components.replay.table import render_report

DONE = Outcome(
    ending="finished",
    at_s=0.0,
    tenant="default",
    latency_class="standard",
    worker="w-0",
    prompt_tokens=1000,
    output_tokens=11,
    cached_tokens=400,
    ttft_s=0.5,
    e2e_s=0.7,
    num_attempts=1,
)


def changed(**values: object) -> Outcome:
    return msgspec.structs.replace(DONE, **values)


def test_percentiles_are_of_the_nearest_rank() -> None:
    latency = compute_latency(reversed([one / 100 for one in range(1, 101)]))
    assert (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s) == (0.5, 0.9, 0.99, 1.0)
    assert latency.mean_s == pytest.approx(0.505)


def test_counted_gaps_have_the_percentiles_of_their_samples() -> None:
    gaps = Counter({one * GAPS_PER_S // 100: 2 for one in range(1, 101)})
    counted, plain = compute_gaps(gaps), compute_latency([one / 100 for one in range(1, 101) for _ in (1, 2)])
    assert msgspec.structs.astuple(counted) == pytest.approx(msgspec.structs.astuple(plain))


def test_reuse_goodput_and_spread() -> None:
    outcomes = [
        DONE,
        changed(worker="w-1", cached_tokens=0),
        changed(worker="w-1", at_s=9.3, ttft_s=1.5, e2e_s=1.7, num_attempts=2),
        changed(ending="refused", code="overloaded", worker="", cached_tokens=0),
    ]
    report = make_report(outcomes, Counter(), 4, Goal(ttft_s=1.0, itl_s=0.03))
    assert (report.num_requests, report.num_finished, report.num_refused, report.num_retried) == (4, 3, 1, 1)
    assert report.failures == {"overloaded": 1}
    assert report.reuse == pytest.approx(800 / 3000)
    assert report.duration_s == pytest.approx(11.0)
    assert report.goodput == pytest.approx(2 / 11)
    assert report.good_share == 0.5
    assert report.spread.requests == pytest.approx(2 / (3 / 4))
    assert report.spread.computed_tokens == pytest.approx(1600 / (2200 / 4))


def test_slow_tokens_are_not_good() -> None:
    report = make_report([DONE], Counter(), 1, Goal(ttft_s=1.0, itl_s=0.019))
    assert report.good_share == 0.0


def test_nothing_at_all_is_all_zero_and_can_be_shown() -> None:
    report = make_report([], Counter(), 8, Goal())
    assert (report.reuse, report.goodput, report.ttft.max_s, report.spread.requests) == (0.0, 0.0, 0.0, 0.0)
    assert "0 of 0 requests" in render_report(report, None)


def test_the_table_says_how_far_off_the_bound_is_and_what_failed() -> None:
    text = render_report(
        make_report([DONE, changed(ending="failed", code="silence")], Counter({500: 10}), 1, Goal()),
        Bound(infinite=0.8, clairvoyant=0.5, ttft=Latency(p99_s=0.123)),
    )
    assert "1 x silence" in text
    assert "80% of what can be" in text
    assert "123.0" in text
