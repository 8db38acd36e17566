"""I/O. Does faults to the processes of a system that `busway up` runs here, and undoes what must be undone."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import anyio

from bus.errors import NoWorker
from components.chaos.faults import Fault
from components.chaos.history import Downtime
from components.supervisor.running import RunningProcess, read_running

RESTARTED_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02


def list_processes(state_dir: Path) -> list[RunningProcess]:
    """Return what runs now; raise `NoWorker` when nothing does."""
    system = read_running(state_dir)
    if system is None:
        raise NoWorker(f"nothing runs in {state_dir}: the system ended")
    return system.processes


async def inflict(fault: Fault, name: str, state_dir: Path) -> Downtime | None:
    """Do it to the process of that name and wait until it, or another in its place, is there again.

    Returns when connections to a killed frontend broke, else None. A process that was frozen goes on in every case,
    also when this is cancelled. Raises `NoWorker` when nothing takes the place of what ended.
    """
    pid = next((process.pid for process in list_processes(state_dir) if process.name == name), 0)
    if not pid:
        return None
    began_at = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(pid, fault.signal)
        if fault.thaw_after_s:
            await _thaw_later(pid, fault.thaw_after_s)
            return None
    await _wait_replaced(name, pid, state_dir)
    is_cut = fault.role == "frontend" and fault.signal == signal.SIGKILL
    return Downtime(began_at, time.monotonic()) if is_cut else None


async def _thaw_later(pid: int, after_s: float) -> None:
    try:
        await anyio.sleep(after_s)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def _wait_replaced(name: str, old_pid: int, state_dir: Path) -> None:
    with anyio.move_on_after(RESTARTED_WITHIN_S):
        while True:
            pids = [process.pid for process in list_processes(state_dir) if process.name == name]
            if pids and old_pid not in pids:
                return
            await anyio.sleep(LOOK_EVERY_S)
    raise NoWorker(f"{name} was ended, and nothing took its place within {RESTARTED_WITHIN_S:g} s")
