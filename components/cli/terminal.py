"""I/O. What a command does at the terminal, and how it runs what is asynchronous."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio

from bus.config import BusConfig, Config
from components.cli.parser import UsageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def read_stdin(example: str) -> str:
    """Return what was piped in; raise `UsageError`, with an example of what to type, where it says nothing."""
    return to_text(sys.stdin.buffer.read(), "stdin", example)


def to_text(data: bytes, source: str, example: str) -> str:
    """Return what somebody wrote; raise `UsageError` where it is empty, or no UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is no text in UTF-8: {error}", example) from error
    if not text.strip():
        raise UsageError(f"{source} is empty", example)
    return text


def run_async(function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """Run a coroutine function to its end on a fresh loop, uvloop where there is one."""
    return anyio.run(function, *arguments, backend_options={"use_uvloop": sys.platform != "win32"})


def find_broker(config: Config) -> Config:
    """Return the configuration with the broker and namespace of the system that `busway up` runs here, if one does.

    A configuration that names another broker stays as it is.
    """
    from msgspec.structs import replace

    from components.supervisor.running import read_running

    running = read_running(Path(config.state_dir))
    if running is None or config.bus.url not in (BusConfig().url, running.nats_url):
        return config
    bus = replace(
        config.bus,
        url=running.nats_url,
        credentials_file=config.bus.credentials_file or running.credentials_file,
        tls_ca=config.bus.tls_ca or running.tls_ca,
    )
    return replace(config, namespace=running.namespace, bus=bus)


def find_frontend(config: Config, url: str | None) -> tuple[str, str]:
    """Return address and authority (a PEM file, or empty) of the frontend at `url`, else of the one that runs here."""
    from components.supervisor.running import read_running

    running = read_running(Path(config.state_dir))
    address = url or (running.url if running else f"http://{config.frontend.host}:{config.frontend.port}")
    return address.removesuffix("/").removesuffix("/v1"), running.tls_ca if running else ""


def find_stores(config: Config) -> Config:
    """Return the configuration with the shared stores of the system that runs here, unless it names some itself."""
    from msgspec.structs import replace

    from bus.config import load_config
    from components.supervisor.running import CONFIG_FILE, read_running

    state_dir = Path(config.state_dir)
    if config.offload.redis.url or config.offload.s3.url or read_running(state_dir) is None:
        return config
    path = state_dir / CONFIG_FILE
    return replace(config, offload=load_config(path.read_text(encoding="utf-8"), {}, [], source=str(path)).offload)
