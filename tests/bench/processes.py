"""I/O. Processes that a bench starts: each with its log, its readiness and its end by process id."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from components.bench.cpu import ProcessGone, list_descendants, read_usage

READY_S = 90.0
STOP_S = 10.0


class StartFailed(Exception):
    """A process ended or was not ready in time; the message ends with the last lines of its log."""


@contextmanager
def started(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own (Ctrl-C reaches only us) and end it and its descendants on exit."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, after STOP_S SIGKILL, by pid; descendants that outlive their parent are killed."""
    children = list_descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            children = sorted({*children, *list_descendants(process.pid)})
            process.kill()
            process.wait()
    for pid in children:
        with contextlib.suppress(ProcessGone, ProcessLookupError):
            if os.getsid(read_usage(pid).pid) == process.pid:
                os.kill(pid, signal.SIGKILL)


def wait_for_model(
    url: str, model: str, log: Path, processes: Sequence[subprocess.Popen[bytes]], *, ready_s: float = READY_S
) -> None:
    """Wait until `url` lists the model; raises StartFailed when a process ends first or the time is over."""
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=2) as answer:
                if f'"{model}"'.encode() in answer.read():
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.1)
                raise StartFailed(f"process {process.pid} ended with code {code}\n{read_tail(log)}")
    raise StartFailed(f"{url} did not list {model!r} within {ready_s:.0f} s\n{read_tail(log)}")


def read_tail(log: Path, num_lines: int = 15) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])
