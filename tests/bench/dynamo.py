"""I/O. Install and start NVIDIA Dynamo's frontend and mocker, the peer that Busway is measured against."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus.server import free_port
from components.bench.report import Process
from tests.bench.processes import started, wait_for_model
from tests.bench.systems import MODEL, Pace, System, Write

VERSION = "1.6.1"
WITHOUT_DEPENDENCIES = (f"ai-dynamo-runtime=={VERSION}", f"ai-dynamo=={VERSION}")
DEPENDENCIES = (
    *("aiohttp", "kubernetes<33", "msgspec", "prometheus-client", "pyzmq", "redis", "tqdm", "transformers", "uvloop"),
    "zstandard",
)
INSTALL_S = 1800.0
PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")


def install_dynamo(folder: Path, write: Write) -> Path:
    """Make the virtual environment unless it is whole, and return its Python; pip's own error ends the program.

    ai-dynamo is installed without its dependencies: one of them cannot be built from the package index alone.
    """
    python = folder / "bin" / "python"
    stamp = folder / "busway-bench.txt"
    wanted = "\n".join((*WITHOUT_DEPENDENCIES, *DEPENDENCIES))
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    write(f"creating {folder}")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=INSTALL_S)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    write(f"installing {' '.join(WITHOUT_DEPENDENCIES)} (200 MB)")
    subprocess.run([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], check=True, timeout=INSTALL_S)
    write(f"installing {' '.join(DEPENDENCIES)}")
    subprocess.run([*pip, *DEPENDENCIES], check=True, timeout=INSTALL_S)
    subprocess.run([python, "-c", "import dynamo.frontend, dynamo.mocker"], check=True, timeout=120)
    stamp.write_text(wanted)
    return python


@contextmanager
def started_dynamo(python: Path, model_path: Path, pace: Pace, folder: Path) -> Iterator[System]:
    """Run one frontend and one mocker until exit, with discovery, caches and logs under `folder`.

    Both log as they do by default (to files): so does Busway.
    """
    home = folder / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "DYN_FILE_KV": str(folder / "discovery"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    port = free_port()
    log = folder / "frontend.log"
    frontend_command: list[str | Path] = [python, "-m", "dynamo.frontend", *PLANES, "--http-port", str(port)]
    mocker_command: list[str | Path] = [
        python,
        "-m",
        "dynamo.mocker",
        *PLANES,
        "--model-path",
        model_path,
        "--model-name",
        MODEL,
    ]
    mocker_command += ["--speedup-ratio", pace.dynamo_speedup]
    with (
        started(frontend_command, environment, log) as frontend,
        started(mocker_command, environment, folder / "mocker.log") as mocker,
    ):
        url = f"http://127.0.0.1:{port}"
        wait_for_model(url, MODEL, log, [frontend, mocker])
        processes = (Process("frontend", "frontend", frontend.pid), Process("mocker", "worker", mocker.pid))
        yield System(name=f"Dynamo {VERSION}", url=url, model=MODEL, processes=processes)
