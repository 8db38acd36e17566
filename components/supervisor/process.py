"""I/O. One child process: started apart from the terminal, bound to our life, its output in a file."""

import asyncio
import ctypes
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Process:
    """A started child. Its signals come from us only: it has a session of its own, so Ctrl-C does not reach it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._started = time.monotonic()
        self._taken = anyio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        return await self._process.wait()

    async def wait_taken_or_ended(self) -> None:
        """Wait until a spare is woken, or ends without that."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._wait_ended, tasks.cancel_scope)
            await self._taken.wait()
            tasks.cancel_scope.cancel()

    async def _wait_ended(self, scope: anyio.CancelScope) -> None:
        await self._process.wait()
        scope.cancel()

    def terminate(self) -> None:
        """Ask it to drain and end."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it, and whatever it started, now."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wake(self, log_path: Path) -> None:
        """Tell a spare to begin, with its output in `log_path`."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{log_path}\n".encode())
            self._process.stdin.close()
        self._started = time.monotonic()
        self._taken.set()


async def start_process(
    argv: Sequence[str], log_path: Path, environment: Mapping[str, str], *, is_spare: bool = False
) -> Process:
    """Start a child whose output is appended to `log_path`; a spare waits until it is woken."""
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=PIPE if is_spare else DEVNULL,
            stdout=log,
            stderr=STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_die_with_parent if _libc is not None else None,
        )
    return Process(process)


def _die_with_parent() -> None:
    """In the child, before its program: have Linux kill it when the supervisor is gone, however that went."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def read_end(log_path: Path, max_bytes: int = 8192) -> list[str]:
    """Return the last lines of a log."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - max_bytes))
            text = log.read(max_bytes).decode("utf-8", "replace")
    except OSError:
        return []
    return text.strip().splitlines()
