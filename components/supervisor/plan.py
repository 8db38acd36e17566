"""Pure. Which processes make a system, and how each is started."""

import sys
from pathlib import Path

import msgspec

from bus.config import Config


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the system, as it is started and started again."""

    name: str
    role: str
    argv: tuple[str, ...]


def plan_parts(config: Config, config_file: Path, nats_argv: tuple[str, ...] | None) -> list[Part]:
    """Return all parts in the order in which they start; they stop in the opposite order of roles."""
    parts = [Part(name="nats", role="nats", argv=nats_argv)] if nats_argv else []
    for number in range(config.up.workers):
        argv = _busway("worker", config_file, *_role_of(config, number))
        parts.append(Part(name=f"worker-{number}", role="worker", argv=argv))
    for number in range(config.up.routers):
        pick_port = config.router.pick_port + number if config.router.pick_port else 0
        argv = _busway("router", config_file, "--set", f"router.pick_port={pick_port}")
        parts.append(Part(name=f"router-{number}", role="router", argv=argv))
    shared = ("--set", "frontend.shares_port=true") if config.up.frontends > 1 else ()
    for number in range(config.up.frontends):
        argv = _busway("frontend", config_file, *shared)
        parts.append(Part(name=f"frontend-{number}", role="frontend", argv=argv))
    return parts


def plan_spare(config: Config, config_file: Path) -> Part | None:
    """Return the worker that stands by, or None where a fresh start is quick enough.

    Importing torch takes 2 s; a process that has it already serves 0.3 s after another's death. It does not know whose
    place it will take, so there is none where workers differ.
    """
    if config.worker.engine != "torch" or config.up.roles:
        return None
    return Part(name="spare", role="spare", argv=_busway("worker", config_file, "--spare"))


def _role_of(config: Config, number: int) -> tuple[str, ...]:
    roles = config.up.roles
    return ("--set", f'worker.roles=["{roles[number % len(roles)]}"]') if roles else ()


def _busway(command: str, config_file: Path, *options: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "components.cli", command, "--config", str(config_file), *options)
