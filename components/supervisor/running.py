"""I/O. What runs in a state directory: kept by `busway up`, read by every command beside it."""

import fcntl
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bus.config import Config
from bus.private import write_private
from components.supervisor.errors import CannotStart

CONFIG_FILE = "config.toml"
"""In the state directory: the configuration of what runs, as all of it starts with."""


class RunningProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the running system."""

    name: str
    role: str
    """`nats`, `frontend`, `router`, `worker`; `spare` is a worker that waits for another's death."""
    pid: int


class RunningSystem(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `up.json`."""

    namespace: str
    url: str
    """Of the first frontend, without a path."""
    nats_url: str
    pid: int
    """Of the supervisor."""
    credentials_file: str = ""
    """With which a person on this machine comes to the bus; empty where nobody needs any."""
    tls_ca: str = ""
    """PEM file of who signed the certificates of bus and frontends; empty without TLS."""
    processes: list[RunningProcess] = []


def write_running(state_dir: Path, system: RunningSystem) -> None:
    """Replace `up.json` in one step."""
    content = msgspec.json.format(msgspec.json.encode(system), indent=2).decode()
    write_private(state_dir / "up.json", f"{content}\n")  # an address may hold a password


def read_running(state_dir: Path) -> RunningSystem | None:
    """Return what runs in `state_dir`, or None; what a dead supervisor left behind does not count."""
    if not is_held(state_dir):
        return None
    try:
        return msgspec.json.decode((state_dir / "up.json").read_bytes(), type=RunningSystem)
    except (OSError, msgspec.MsgspecError):
        return None


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Be the only supervisor of `state_dir`; raise `CannotStart` when there is one.

    The kernel drops the lock with its holder, however that ends, so a lock is never stale.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotStart(
            f"cannot keep anything in {state_dir}: {error.strerror}", "--set state_dir=DIR, where you may write"
        ) from error
    try:
        try:
            _lock(descriptor)
        except BlockingIOError:
            running, option = read_running(state_dir), option_for(state_dir)
            where = f" at {running.url}, process {running.pid}" if running else ""
            raise CannotStart(
                f"a system runs in {state_dir} already{where}",
                f"busway chat{option}, or `busway down{option}` to stop it, or --set state_dir=.busway-2 for another "
                "beside it",
            ) from None
        try:
            yield
        finally:
            (state_dir / "up.json").unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_held(state_dir: Path) -> bool:
    """Say whether a supervisor holds `state_dir`."""
    try:
        descriptor = os.open(state_dir / "up.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def option_for(state_dir: Path) -> str:
    """Return what a command needs at its end to find the system in `state_dir`: nothing if that is the default."""
    if state_dir == Path(Config().state_dir):
        return ""
    return f" --set {shlex.quote(f'state_dir={state_dir}')}"


def _lock(descriptor: int) -> None:
    """Take the lock; a reader that looks at it just now (`is_held`) is gone a moment later."""
    for _ in range(5):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
