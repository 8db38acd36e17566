"""I/O. Does faults to the processes of a system that `busway up` runs here, and undoes what must be undone."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import anyio

from bus.errors import NoWorker
from components.chaos.ask import Target
from components.chaos.faults import Fault
from components.chaos.history import Downtime
from components.supervisor.probe import wait_until_ready
from components.supervisor.running import RunningProcess, read_running

RESTARTED_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02


def list_processes(state_dir: Path) -> list[RunningProcess]:
    """Return what runs now; raise `NoWorker` when nothing does."""
    system = read_running(state_dir)
    if system is None:
        raise NoWorker(f"nothing runs in {state_dir}: the system ended")
    return system.processes


async def inflict(fault: Fault, name: str, state_dir: Path, target: Target) -> Downtime | None:
    """Do it to the process of that name and wait until it, or another in its place, is there again.

    Returns between which times a frontend that was ended did not serve; None for all else. A process that was frozen
    goes on in every case, also when this is cancelled. Raises `NoWorker` when nothing takes the place of what ended.
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
    if fault.role != "frontend":
        return None
    await _wait_serving(name, state_dir, target)
    return Downtime(began_at, time.monotonic(), is_abrupt=fault.signal == signal.SIGKILL)


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


async def _wait_serving(name: str, state_dir: Path, target: Target) -> None:
    with anyio.move_on_after(RESTARTED_WITHIN_S):
        while not any(p.name == name and _listens(p.pid, target.port) for p in list_processes(state_dir)):  # noqa: ASYNC110
            await anyio.sleep(LOOK_EVERY_S)
        return await wait_until_ready(target.host, target.port, is_tls=target.tls is not None)
    raise NoWorker(f"{name} was started again, and does not serve after {RESTARTED_WITHIN_S:g} s")


def _listens(pid: int, port: int) -> bool:
    """Say whether a process listens on a port, which others may share; always, where the system does not tell."""
    ours = Path("/proc", str(pid))
    if not Path("/proc/self/net/tcp").exists():
        return True
    try:
        lines = [
            line.split() for file in ("tcp", "tcp6") for line in (ours / "net" / file).read_text().splitlines()[1:]
        ]
        listening = {f"socket:[{f[9]}]" for f in lines if f[3] == "0A" and f[1].endswith(f":{port:04X}")}
        return any(os.readlink(link) in listening for link in (ours / "fd").iterdir())
    except OSError:
        return False
