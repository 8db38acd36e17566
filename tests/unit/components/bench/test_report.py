"""Pure. Costs are CPU over what was served; percentiles are nearest rank; failures are shown."""

import msgspec
import pytest

from components.bench.report import Process, ProcessSample, Round, Run, compute_costs, render_round
from components.bench.results import LoadResult, Percentiles, compute_percentiles

NO_TIMES = Percentiles(0, 0.0, 0.0, 0.0)
LOAD = LoadResult(
    num_ok=100,
    num_failed=0,
    failures={},
    first_failure="",
    num_tokens=6400,
    num_events=6400,
    wall_s=2.0,
    cpu_s=0.032,
    ttft=Percentiles(100, 0.010, 0.020, 0.030),
    itl=NO_TIMES,
    e2e=NO_TIMES,
)
SINGLE = msgspec.structs.replace(LOAD, num_tokens=100)
FRONTEND = Process("frontend-1", "frontend", 11)
WORKER_A = Process("worker-1", "worker", 12)
WORKER_B = Process("worker-2", "worker", 13)


def take_samples(*cpu_s: float) -> tuple[ProcessSample, ...]:
    processes = [FRONTEND, WORKER_A, WORKER_B]
    return tuple(
        ProcessSample(process=process, cpu_before_s=5.0, cpu_after_s=5.0 + used_s, rss_bytes=20_000_000)
        for process, used_s in zip(processes, cpu_s, strict=True)
    )


ROUND = Round(
    streams=32,
    long=Run(load=LOAD, samples=take_samples(0.128, 0.032, 0.064)),
    single=Run(load=SINGLE, samples=take_samples(0.065, 0.0, 0.01)),
)


def test_costs_are_per_token_per_request_and_per_further_token() -> None:
    frontend = compute_costs(ROUND)[0]
    assert frontend.token_us == pytest.approx(20.0)
    assert frontend.request_us == pytest.approx(650.0)
    assert frontend.extra_token_us == pytest.approx((1280 - 650) / 63)


def test_roles_with_several_processes_and_the_whole_path_are_summed() -> None:
    costs = {cost.name: cost for cost in compute_costs(ROUND)}
    assert list(costs) == ["frontend-1", "worker-1", "worker-2", "all worker (2)", "whole path"]
    assert costs["all worker (2)"].token_us == pytest.approx(15.0)
    assert costs["whole path"].token_us == pytest.approx(35.0)
    assert costs["whole path"].rss_bytes == 60_000_000


def test_the_table_shows_costs_times_and_the_load_generator() -> None:
    text = render_round(ROUND)
    assert "32 streams: 100 requests, 6400 tokens in 2.0 s = 3200 tokens/s" in text
    assert text.splitlines()[3].split() == ["frontend-1", "20.0", "650", "10.0", "20"]
    assert "TTFT        10.00  20.00  30.00" in text
    assert "(load generator)       5.0" in text
    assert "FAILED" not in text


def test_failures_are_shown_with_their_reasons() -> None:
    failed = msgspec.structs.replace(
        LOAD, num_failed=3, failures={"HTTP 429": 2, "timeout": 1}, first_failure="HTTP 429: full"
    )
    text = render_round(msgspec.structs.replace(ROUND, long=Run(load=failed, samples=ROUND.long.samples)))
    assert "3 requests FAILED: 2 x HTTP 429, 1 x timeout" in text
    assert "first: HTTP 429: full" in text


def test_nothing_served_costs_zero_instead_of_dividing_by_it() -> None:
    nothing = msgspec.structs.replace(LOAD, num_ok=0, num_tokens=0)
    empty = Run(load=nothing, samples=ROUND.long.samples)
    cost = compute_costs(Round(streams=1, long=empty, single=empty))[0]
    assert (cost.token_us, cost.request_us, cost.extra_token_us) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("samples_ns", "expected"),
    [
        ([], (0, 0.0, 0.0, 0.0)),
        ([3_000_000_000], (1, 3.0, 3.0, 3.0)),
        ([n * 1_000_000_000 for n in range(100, 0, -1)], (100, 50.0, 90.0, 99.0)),
        ([2_000_000_000, 1_000_000_000], (2, 1.0, 2.0, 2.0)),
    ],
)
def test_percentiles_are_nearest_rank(samples_ns: list[int], expected: tuple[float, ...]) -> None:
    assert msgspec.structs.astuple(compute_percentiles(samples_ns)) == expected
