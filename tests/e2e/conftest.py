"""Whole processes: `busway` commands as a person starts them, in a directory of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180.0


class Shell:
    """Starts `busway` commands in one directory and leaves none behind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, tree: Path = ROOT) -> subprocess.Popen[str]:
        """Start a command of the code in `tree`; its output is kept for `output()`."""
        log = (self.directory / f"{len(self._started)}.out").open("w")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "components.cli", *words],
            cwd=self.directory,
            env=self.environment() | {"PYTHONPATH": str(tree)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log.close()
        self._started.append(process)
        return process

    def output(self) -> str:
        """Return what the command that was started last has printed so far."""
        return (self.directory / f"{len(self._started) - 1}.out").read_text()

    def first_output(self) -> str:
        """Return what the command that was started first has printed so far."""
        return (self.directory / "0.out").read_text()

    def run(self, *words: str, timeout_s: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "components.cli", *words],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def close(self) -> None:
        """Stop what still runs: in order first, so that it can stop its own children."""
        running = [process for process in self._started if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def environment(self) -> dict[str, str]:
        """Return the environment of all commands: ours, without settings."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BUSWAY__")}
        return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A directory to run commands in."""
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def shared_shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A directory that the tests of one module share."""
    shell = Shell(tmp_path_factory.mktemp("busway"))
    yield shell
    shell.close()


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., float]:
    """Return a function that waits for a condition and returns the seconds that it took."""

    def wait(
        condition: Callable[[], object], *, within_s: float = DEADLINE_S, explain: Callable[[], str] = str
    ) -> float:
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > within_s:
                pytest.fail(f"not within {within_s} s\n{explain()}")
            time.sleep(0.01)
        return time.monotonic() - started

    return wait
