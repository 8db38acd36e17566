"""I/O. The processes of one system: started, woken from a spare, written to `up.json`, stopped in order."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from bus.config import ENV_PREFIX
from components.supervisor.plan import Part
from components.supervisor.policy import choose_last_words
from components.supervisor.process import Process, read_end, start_process
from components.supervisor.running import RunningProcess, RunningSystem, write_running

if TYPE_CHECKING:
    from components.supervisor.secure import Secrets

STOP_ORDER = ("spare", "frontend", "router", "worker", "nats")
"""Frontends drain while routers and workers still work, and the broker goes last."""
_ROOT = Path(__file__).parents[2]


class Fleet:
    """All processes that run now, by part."""

    def __init__(self, system: RunningSystem, state_dir: Path, secrets: "Secrets | None" = None) -> None:
        """With `secrets` each process gets credentials of its own, which go with it."""
        self._system = system
        self._state_dir = state_dir
        self._secrets = secrets
        self._credentials: dict[int, Path] = {}
        self._environment = _child_environment()
        self._processes: dict[Part, Process] = {}

    @property
    def system(self) -> RunningSystem:
        """What runs now, as `up.json` tells it."""
        processes = [RunningProcess(name=p.name, role=p.role, pid=x.pid) for p, x in self._processes.items()]
        return msgspec.structs.replace(self._system, processes=processes)

    def log_path(self, part: Part) -> Path:
        """Return the file with the part's output."""
        return self._state_dir / "logs" / f"{part.name}.log"

    def last_words(self, part: Part) -> str:
        """Return what the end of the part's output tells, indented."""
        return "\n".join(f"    {line}" for line in choose_last_words(read_end(self.log_path(part))))

    async def start(self, part: Part) -> Process:
        """Start a part's process; a worker's is the spare, if one stands by."""
        with anyio.CancelScope(shield=True):  # what was started is known, also when we are being stopped
            self._processes[part] = self._wake_spare(part) or await self._start_process(part)
        self._record()
        return self._processes[part]

    async def _start_process(self, part: Part) -> Process:
        credentials = self._secrets.issue(part.role) if self._secrets else None
        options = ("--set", f"bus.credentials_file={credentials}") if credentials else ()
        process = await start_process(
            (*part.argv, *options), self.log_path(part), self._environment, is_spare=part.role == "spare"
        )
        if credentials:
            self._credentials[process.pid] = credentials
        return process

    def renew_credentials(self) -> None:
        """Give all processes new credentials in the place of theirs; raise `BadConfig` or `OSError`."""
        if self._secrets is not None:
            self._secrets.renew(self._credentials.values())

    def _wake_spare(self, part: Part) -> Process | None:
        if part.role != "worker":
            return None
        for spare, process in self._processes.items():
            if spare.role == "spare" and process.is_running:
                del self._processes[spare]
                process.wake(self.log_path(part))
                return process
        return None

    def forget(self, part: Part, process: Process) -> None:
        """Take note that a process ended, if it did; a part that has another one by now keeps it."""
        if not process.is_running and (credentials := self._credentials.pop(process.pid, None)):
            credentials.unlink(missing_ok=True)
        if self._processes.get(part) is process:
            del self._processes[part]
            self._record()

    async def stop(self, grace_s: float) -> list[str]:
        """Stop all processes, role by role; return the names of those that had to be killed."""
        killed: list[str] = []
        for role in STOP_ORDER:
            stopping = {part: process for part, process in self._processes.items() if part.role == role}
            for process in stopping.values():
                process.terminate()
            with anyio.move_on_after(grace_s):
                await _wait_all(stopping.values())
            for part, process in stopping.items():
                if process.is_running:
                    process.kill()
                    killed.append(part.name)
            await _wait_all(stopping.values())
        return killed

    def kill(self) -> None:
        """End all processes now; their credentials go with them."""
        for process in self._processes.values():
            process.kill()
        for credentials in self._credentials.values():
            credentials.unlink(missing_ok=True)

    def _record(self) -> None:
        write_running(self._state_dir, self.system)


async def _wait_all(processes: Iterable[Process]) -> None:
    for process in processes:
        await process.wait()


def _child_environment() -> dict[str, str]:
    """Return ours, without settings (they are in the children's file, merged) and with our own packages first."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    paths = [str(_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return environment | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
