"""Routers that die, clocks that jump, releases that meet, and more work than there is room for."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from components.chaos.history import gap_across
from tests.bench.overload import MAX_TOKENS, SETTINGS, measure_capacity, measure_overload, percentile
from tests.faults.system import ROOT, STEP_S, make_questions, until

pytestmark = pytest.mark.anyio


async def test_a_killed_router_holds_nothing_up(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system(routers=1)
    async with under_load(system, max_tokens=24) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        system.kill("router-0")
        await anyio.sleep(2.0)
        system.start("router-0")
        await until(lambda: len(system.events("router-0", "kv_events.replayed")) > 1)
        await anyio.sleep(0.5)
    waited = [a.first_at - a.started_at for a in load.answers if at - 0.5 < a.started_at < at + 2.0]
    replayed = system.events("router-0", "kv_events.replayed")[-1]
    measured(
        "18",
        f"longest wait for a first token {1e3 * max(waited):.0f} ms, gap {1e3 * gap_across(load.answers, at):.0f} ms; "
        f"{replayed['num_blocks']} blocks known after {replayed['duration_s']:.2f} s",
    )
    assert max(waited) < 0.5 + 0.25


async def test_a_frozen_router_holds_up_little_where_there_is_another(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    """One of the two leads: the other one, frozen, costs nothing."""
    system = await open_system(routers=2)
    async with under_load(system, max_tokens=24) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        for name in ("router-0", "router-1"):
            with system.frozen(name):
                await anyio.sleep(4.0)
            await anyio.sleep(1.0)
    waited_s = max(a.first_at - a.started_at for a in load.answers if a.started_at > at)
    measured(
        "18b",
        f"longest wait for a first token {waited_s:.2f} s, gap {gap_across(load.answers, at, time.monotonic()):.2f} s",
    )
    assert waited_s < 2.0 + stalls.slack_s


async def test_a_clock_that_jumps_ends_no_request(
    open_system: Any, under_load: Any, measured: Any, tmp_path: Path
) -> None:
    libfaketime = pytest.importorskip("libfaketime")
    library, clock = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1", tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    system = await open_system(workers=1)
    system.start("worker-1", environment=fake, settings={"log.level": "debug"})
    await system.wait_ready(2)
    async with under_load(system, deadline_s=20.0) as load:
        for jump in ("+3600", "-3600", "+0"):
            clock.write_text(jump)
            await anyio.sleep(2.0)
    system.send("worker-1", signal.SIGTERM)  # killed, it would leave the library's shared memory behind
    await anyio.to_thread.run_sync(system.processes["worker-1"].wait)
    hours = {str(event["timestamp"])[:13] for event in system.events("worker-1", "sequence.finished")}
    measured(
        "27", f"{len(load.answers)} requests with deadlines, none expired ({len(hours)} different hours in its log)"
    )
    assert len(hours) > 1, "its clock did not jump"


async def test_a_worker_of_an_older_version_serves_beside_new_ones(
    open_system: Any, under_load: Any, measured: Any, tmp_path: Path
) -> None:
    commit = os.environ.get("BUSWAY_OLDER", "65d7137")
    found = subprocess.run(  # noqa: ASYNC221
        ["git", "-C", str(ROOT), "archive", "--prefix=older/", commit], capture_output=True, check=False
    )
    if found.returncode:
        pytest.skip(f"the older version {commit} is not in this checkout's history")
    subprocess.run(["tar", "x", "-C", str(tmp_path)], input=found.stdout, check=True)  # noqa: ASYNC221
    system = await open_system(workers=1)
    system.start("worker-1", root=tmp_path / "older")
    await system.wait_ready(2)
    async with under_load(system) as load:
        await anyio.sleep(2.0)
        system.kill("worker-0")
        at = time.monotonic()
        await anyio.sleep(1.0)
        system.start("worker-0")
        await system.wait_ready(2)
        system.kill("worker-1")
        await anyio.sleep(1.0)
    gap_s = gap_across(load.answers, at)
    measured("29", f"version {commit}: {len(load.answers)} requests, each way migrated once, gap {1e3 * gap_s:.0f} ms")
    assert gap_s < 1.2 + STEP_S


async def test_twice_the_load_costs_little_goodput_and_no_priority(open_system: Any, measured: Any) -> None:
    system = await open_system(workers=1, settings=SETTINGS)
    questions = await make_questions(system.target(), 64, max_tokens=MAX_TOKENS)
    capacity = await measure_capacity(system.target(), questions, 5.0)
    result = await measure_overload(system.target(), questions, 12.0, capacity=capacity)
    refused_s = max(a.ended_at - a.started_at for each in result.answers.values() for a in each if a.status == 429)
    served = {name: result.served_share(name) for name in result.answers}
    waits = sorted(a.first_at - a.started_at for a in result.answers["interactive"] if a.status == 200)
    measured(
        "30",
        f"goodput {result.goodput:.0%}; served: "
        + ", ".join(f"{share:.0%} of {name}" for name, share in served.items())
        + f"; interactive p99 {1e3 * percentile(waits, 0.99):.0f} ms; refused within {1e3 * refused_s:.0f} ms",
    )
    assert result.verdict.is_good, result.verdict
    assert result.goodput > 0.9
    assert served["interactive"] > 0.9
    assert served["batch"] > 0.0
    assert refused_s < 0.5
