"""The network between processes and the broker: cut, slow, swallowed, turned to garbage, unplugged."""

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from components.chaos.history import gap_across
from tests.faults.proxy import FaultProxy, fault_proxy
from tests.faults.system import STEP_S, until
from tests.faults.test_broker import gap_after

pytestmark = pytest.mark.anyio


@pytest.fixture
async def behind(open_system: Any) -> AsyncIterator[tuple[Any, FaultProxy]]:
    """Two workers, and a third one behind a proxy."""
    system = await open_system(workers=2)
    async with fault_proxy(system.server.port) as proxy:
        system.start("worker-2", bus_url=proxy.url)
        await system.wait_ready(3)
        yield system, proxy


async def test_a_worker_that_hears_nothing_is_left(behind: Any, under_load: Any, measured: Any, stalls: Any) -> None:
    system, proxy = behind
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        at = time.monotonic()
        proxy.swallow()
        await anyio.sleep(7.0)
        proxy.flow()
        num_before = proxy.num_connections
        await anyio.sleep(3.0)
    gap_s = gap_across(load.answers, at)
    measured("14", f"gap {1e3 * gap_s:.0f} ms; connected anew {proxy.num_connections - 1} times")
    assert gap_s < 1.2 + STEP_S + stalls.slack_s
    assert num_before > 1, "it connects anew while it hears nothing"


async def test_a_frontend_that_hears_nothing_goes_on_where_it_was(
    open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system = await open_system(frontends=0)
    async with fault_proxy(system.server.port) as proxy:
        system.start("frontend-0", bus_url=proxy.url)
        await system.wait_ready(3)
        async with under_load(system, max_tokens=100, may_refuse=True) as load:
            await anyio.sleep(1.0)
            proxy.swallow()
            await anyio.sleep(3.0)
            proxy.flow()
            at = time.monotonic()
            await anyio.sleep(2.0)
    gap_s = gap_after(load, at)
    measured("15", f"streams go on after {gap_s:.2f} s")
    assert gap_s < 1.0 + stalls.slack_s


async def test_connections_may_be_reset_again_and_again(behind: Any, under_load: Any, measured: Any) -> None:
    system, proxy = behind
    fds = system.num_fds("worker-2")
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        for _ in range(20):
            proxy.cut()
            await anyio.sleep(0.2)
        await anyio.sleep(1.0)
    gap_s = max(answer.longest_gap_s for answer in load.answers)
    measured(
        "16",
        f"{proxy.num_connections} connections, gap {1e3 * gap_s:.0f} ms, descriptors {fds} and then "
        f"{system.num_fds('worker-2')}",
    )
    assert system.num_fds("worker-2") <= fds + 1
    assert proxy.num_connections > 5


async def test_garbage_from_the_bus_ends_a_connection_and_nothing_else(
    behind: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    system, proxy = behind
    async with under_load(system) as load:
        await anyio.sleep(1.0)
        for _ in range(3):
            proxy.garbage_in = 1
            await anyio.sleep(1.0)
    gap_s = max(answer.longest_gap_s for answer in load.answers)
    measured("33", f"gap {1e3 * gap_s:.0f} ms, {proxy.num_connections} connections")
    assert system.processes["worker-2"].poll() is None
    assert gap_s < 2.1 + STEP_S + stalls.slack_s


async def test_a_slow_network_costs_time_and_no_tokens(open_system: Any, under_load: Any, measured: Any) -> None:
    system = await open_system(workers=0, frontends=0)
    async with fault_proxy(system.server.port) as proxy:
        for name in ("worker-0", "worker-1", "frontend-0"):
            system.start(name, bus_url=proxy.url)
        await system.wait_ready(2)
        rates = []
        for delay_s in (0.0, 0.05):
            proxy.delay_s = proxy.jitter_s = delay_s
            async with under_load(system, streams=32, max_tokens=200) as load:
                await anyio.sleep(6.0)
            span_s = max(a.ended_at for a in load.answers) - min(a.started_at for a in load.answers)
            rates.append(sum(answer.num_tokens or 0 for answer in load.answers) / span_s)
        proxy.delay_s = proxy.jitter_s = 0.0
    measured("17", f"{rates[1] / rates[0]:.0%} of the tokens")
    assert rates[1] > 0.8 * rates[0]


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """A network name space with a pair of interfaces: its name, and our end's address."""
    name, ours, theirs = "busway-far", "bw-near", "bw-far"
    commands = [
        f"ip netns add {name}",
        f"ip link add {ours} type veth peer name {theirs}",
        f"ip link set {theirs} netns {name}",
        f"ip addr add 10.213.7.1/24 dev {ours}",
        f"ip link set {ours} up",
        f"ip netns exec {name} ip addr add 10.213.7.2/24 dev {theirs}",
        f"ip netns exec {name} ip link set {theirs} up",
        f"ip netns exec {name} ip link set lo up",
    ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"a network of its own needs root: {command}: {done.stderr.strip()}")
        yield name, "10.213.7.1"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", ours], check=False, capture_output=True)


async def test_a_host_without_network_is_left_and_comes_back(
    cable: tuple[str, str], open_system: Any, under_load: Any, measured: Any, stalls: Any
) -> None:
    namespace, address = cable
    system = await open_system(workers=2)
    async with fault_proxy(system.server.port, address) as proxy:
        system.start("worker-2", bus_url=proxy.url, prefix=["ip", "netns", "exec", namespace])
        await system.wait_ready(3)
        async with under_load(system) as load:
            await anyio.sleep(1.0)
            at = time.monotonic()
            await anyio.run_process(["ip", "link", "set", "bw-near", "down"])
            await anyio.sleep(8.0)
            await anyio.run_process(["ip", "link", "set", "bw-near", "up"])
            back_s = await until(lambda: proxy.num_connections > 1, 10.0)
            await anyio.sleep(1.0)
    gap_s = gap_across(load.answers, at)
    measured("34", f"gap {1e3 * gap_s:.0f} ms, connected again {back_s:.1f} s after the network is back")
    assert gap_s < 1.2 + STEP_S + stalls.slack_s
