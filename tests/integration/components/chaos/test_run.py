"""Chaos on a system of which nothing is there, or not what is to be disturbed: one error that says so."""

from pathlib import Path

import pytest

from bus.config import Config
from bus.errors import NoWorker
from bus.server import free_port
from components.chaos.ask import Target
from components.chaos.faults import choose_faults
from components.chaos.run import ChaosOptions, run_chaos
from components.supervisor.running import RunningProcess, RunningSystem, hold, write_running

pytestmark = pytest.mark.anyio


async def disturb(state_dir: Path) -> None:
    options = ChaosOptions(
        target=Target(host="127.0.0.1", port=free_port(), model="mock"),
        faults=tuple(choose_faults(["kill-worker"], ["worker"])),
        duration_s=10.0,
        every_s=0.01,
        streams=2,
    )
    await run_chaos(Config(state_dir=str(state_dir)), options, lambda line: None)


async def test_where_no_process_may_be_disturbed_it_says_so(tmp_path: Path) -> None:
    broker = RunningProcess(name="nats", role="nats", pid=2**22 + 1)
    with hold(tmp_path):
        write_running(tmp_path, RunningSystem(namespace="n", url="", nats_url="", pid=1, processes=[broker]))
        with pytest.raises(NoWorker, match="no worker runs"):
            await disturb(tmp_path)


async def test_where_the_system_ended_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoWorker, match="the system ended"):
        await disturb(tmp_path)
