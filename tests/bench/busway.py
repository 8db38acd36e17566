"""I/O. Start a Busway system with the mock engine, as a user would."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus.server import free_port
from components.bench.cpu import list_descendants
from components.bench.report import Process
from tests.bench.processes import started, wait_for_model
from tests.bench.systems import MODEL, Pace, System

ROLES = {"nats-server": "nats", "frontend": "frontend", "worker": "worker", "router": "router"}


def make_command(model_path: Path, port: int, pace: Pace, folder: Path) -> list[str | Path]:
    """Return the command that starts broker, frontend and one worker with the mock engine."""
    settings = (
        f"state_dir={folder / 'state'}",
        f"frontend.port={port}",
        f"up.nats_port={free_port()}",
        f"worker.model={model_path}",
        f"worker.served_name={MODEL}",
        "worker.engine=mock",
        *pace.busway_settings,
    )
    command: list[str | Path] = [sys.executable, "-m", "components.cli", "up"]
    for setting in settings:
        command += ["--set", setting]
    return command


@contextmanager
def started_busway(model_path: Path, pace: Pace, folder: Path) -> Iterator[System]:
    """Run `busway up` until exit, with its state and log under `folder`."""
    port = free_port()
    log = folder / "busway.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started(make_command(model_path, port, pace, folder), environment, log) as up:
        url = f"http://127.0.0.1:{port}"
        wait_for_model(url, MODEL, log, [up])
        yield System(name="Busway", url=url, model=MODEL, processes=list_processes(up.pid))


def list_processes(up_pid: int) -> tuple[Process, ...]:
    """Return the supervisor and all its descendants, named by their command lines."""
    found = [Process("supervisor", "supervisor", up_pid)]
    for pid in list_descendants(up_pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name = next((name for name in ROLES if any(Path(word).name == name for word in words)), Path(words[0]).name)
        found.append(Process(name, ROLES.get(name, "other"), pid))
    return tuple(found)
