"""The broker dies, freezes, forgets everything, is full, or is flooded."""

import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from components.chaos.ask import ask
from components.chaos.history import gap_across
from components.chaos.load import running_load
from tests.faults.cluster import ClusterSystem
from tests.faults.loads import read_loads
from tests.faults.system import STEP_S, make_questions, until

pytestmark = pytest.mark.anyio


def gap_after(load: Any, at: float) -> float:
    """Return the longest time without text that ended after this moment, counted from it."""
    ends = [a.gap_began_at + a.longest_gap_s - at for a in load.answers if a.gap_began_at < at]
    return max(ends, default=0.0)


async def test_streams_survive_the_brokers_death(open_system: Any, under_load: Any, measured: Any, stalls: Any) -> None:
    system = await open_system()
    async with under_load(system, may_refuse=True) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        system.kill("nats")
        await anyio.sleep(0.3)
        await system.start_nats()
        await anyio.sleep(1.5)
    gap_s = gap_across(load.answers, at)
    measured("8", f"gap {1e3 * gap_s:.0f} ms")
    assert gap_s < 0.6 + STEP_S + stalls.slack_s


async def test_streams_survive_a_broker_that_is_away(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system()
    (question,) = await make_questions(system.target(), 1, seed=7)
    async with under_load(system, may_refuse=True, max_tokens=100) as load:
        await anyio.sleep(1.0)
        system.kill("nats")
        await anyio.sleep(1.0)
        refused = await ask(system.target(), question)
        refused_s = refused.ended_at - refused.started_at
        await anyio.sleep(4.0)
        await system.start_nats()
        back_at = time.monotonic()
        await anyio.sleep(2.0)
    gap_s = gap_after(load, back_at)
    measured("9", f"streams go on after {gap_s:.2f} s; {refused.status} after {1e3 * refused_s:.0f} ms")
    assert refused.status == 503
    assert refused_s < 1.0
    assert gap_s < 1.0 + stalls.slack_s


async def test_streams_survive_a_frozen_broker(open_system: Any, under_load: Any, measured: Any, stalls: Any) -> None:
    system = await open_system()
    async with under_load(system, may_refuse=True, max_tokens=100) as load:
        await anyio.sleep(1.0)
        with system.frozen("nats"):
            await anyio.sleep(6.0)
        back_at = time.monotonic()
        await anyio.sleep(2.0)
    gap_s = gap_after(load, back_at)
    measured("10", f"streams go on after {gap_s:.2f} s")
    assert gap_s < 1.0 + stalls.slack_s


async def test_an_empty_broker_is_filled_by_those_who_use_it(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system(routers=1)
    async with under_load(system, may_refuse=True, max_tokens=100) as load:
        await anyio.sleep(1.0)
        system.kill("nats")
        shutil.rmtree(system.folder / "nats" / "store")
        await system.start_nats()
        back_at = time.monotonic()
        await anyio.sleep(4.0)
    served_s = min(a.first_at for a in load.answers if a.started_at > back_at and a.status == 200) - back_at
    measured(
        "11", f"a new request is served after {served_s:.2f} s; streams go on after {gap_after(load, back_at):.2f} s"
    )
    assert served_s < 3.0


async def test_a_cluster_loses_the_broker_that_leads(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system: ClusterSystem = await open_system(kind=ClusterSystem, routers=1)
    async with under_load(system, may_refuse=True, max_tokens=100) as load:
        await anyio.sleep(1.0)
        victim = system.leader("BUSWAY_WORK")
        system.kill(victim)
        at = time.monotonic()
        await until(lambda: system.leader("BUSWAY_WORK") not in ("", victim), 10.0)
        led_s = time.monotonic() - at
        await anyio.sleep(2.0)
        await system.start_broker(victim)
        await anyio.sleep(1.0)
    served_s = min(a.first_at for a in load.answers if a.started_at > at and a.status == 200) - at
    gap_s = gap_across(load.answers, at)
    measured(
        "12", f"gap {1e3 * gap_s:.0f} ms; a leader after {led_s:.1f} s, new requests served after {served_s:.1f} s"
    )
    assert gap_s < 1.0 + stalls.slack_s
    assert served_s < 10.0 + stalls.slack_s


async def test_a_cluster_goes_on_without_a_broker_that_hangs(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    """Whoever is connected to it hears nothing, and leaves it; what it led is led by others."""
    system: ClusterSystem = await open_system(kind=ClusterSystem, routers=1)
    async with under_load(system, may_refuse=True, max_tokens=100) as load:
        await anyio.sleep(1.0)
        with system.frozen(system.leader("BUSWAY_WORK")):
            at = time.monotonic()
            await anyio.sleep(6.0)
        over = time.monotonic()
        await until(lambda: any(a.started_at > at and a.status == 200 for a in load.answers), 20.0)
        await anyio.sleep(2.0)
    served_s = min(a.first_at for a in load.answers if a.started_at > at and a.status == 200) - over
    measured("13b", f"new requests served {served_s:.1f} s after its end; gap {gap_across(load.answers, at):.1f} s")
    assert served_s < 10.0 + stalls.slack_s


async def test_a_flood_of_malformed_messages_hurts_nobody(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system()
    rng = random.Random(3)
    subjects = ["out.v1.f-1.w-1", "work.v1.mock.both.any.standard", "ctl.v1.any", "load.v1.mock.w-1", "kv.v1.mock.w-1"]
    noise = b"".join(
        f"PUB busway.{subject} {len(body)}\r\n".encode() + body + b"\r\n"
        for subject in subjects
        for body in (b"\xc1", b"{", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", rng.randbytes(60))
        for _ in range(4)
    )
    async with under_load(system) as load:
        await anyio.sleep(2.0)
        at = time.monotonic()
        with socket.create_connection(("127.0.0.1", system.server.port)) as client:
            client.sendall(b'CONNECT {"verbose":false}\r\n')
            for _ in range(30):
                client.sendall(noise)
                await anyio.sleep(0.1)
        over = time.monotonic()
        await anyio.sleep(1.0)
    before = max(a.longest_gap_s for a in load.answers if a.ended_at < at)
    during = max(a.longest_gap_s for a in load.answers if at < a.started_at and a.ended_at < over)
    measured("23", f"longest gap {1e3 * before:.0f} ms before, {1e3 * during:.0f} ms meanwhile")
    assert all(process.poll() is None for process in system.processes.values())
    assert during < 2 * max(before, 0.05)


async def test_a_frozen_observer_is_cut_off(open_system: Any, under_load: Any, measured: Any, stalls: Any) -> None:
    system = await open_system()
    tap = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-P", "-m", "components.cli", "tap", "busway.>", "--set", f"bus.url={system.server.url}"],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=system.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert tap.stdout is not None
        await anyio.to_thread.run_sync(tap.stdout.readline)
        async with under_load(system, streams=96) as load:
            await anyio.sleep(1.0)
            at = time.monotonic()
            tap.send_signal(signal.SIGSTOP)
            await anyio.sleep(5.0)
    finally:
        tap.kill()
        tap.wait()
        tap.stdout.close()
    gap_s = max(a.longest_gap_s for a in load.answers if a.ended_at > at)
    measured("24", f"gap {1e3 * gap_s:.0f} ms")
    assert gap_s < 0.25 + STEP_S + stalls.slack_s


async def test_a_frontend_that_is_killed_costs_its_own_streams_only(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system(workers=1, frontends=2, settings={"worker.slots": 64})
    doomed = await make_questions(system.target("frontend-1"), 16, max_tokens=2000)
    async with under_load(system, streams=16) as load, running_load(system.target("frontend-1"), doomed, 16) as lost:
        await anyio.sleep(1.0)
        system.kill("frontend-1")
        at = time.monotonic()
        lost.stop()
        held = 99
        while held > 16:
            held = sum((await read_loads(system.config, within_s=0.3)).values())
            assert time.monotonic() - at < 10.0
        freed_s = time.monotonic() - at
    gap_s = gap_across(load.answers, at)
    measured("20", f"slots free after {freed_s:.1f} s, gap of the other's streams {1e3 * gap_s:.0f} ms")
    assert gap_s < 0.25 + STEP_S + stalls.slack_s
    assert await until(lambda: bool(system.events("worker-0", "frontend.lost"))) < 1.0
