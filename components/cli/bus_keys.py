"""I/O. Credentials for the bus: `busway keys bus ROLE` makes a file of them, `busway keys revoke NAME` ends them."""

import argparse
import os
import signal
import time
from pathlib import Path

from bus.config import Config
from bus.connection import load_declared
from bus.errors import BadConfig
from bus.registry import new_id
from bus.roles import ROLES, BusRole
from bus.server import change_guard
from bus.subjects import Subjects, slug
from bus.vault import Vault, find_vault
from components.cli.parser import UsageError, did_you_mean
from components.cli.terminal import say
from components.supervisor.running import read_running

_DAY_S = 86_400


def issue(config: Config, options: argparse.Namespace) -> None:
    """Write a file of credentials for one process, or one tenant, of a role; say how it is used."""
    role = _role(options.name)
    if not options.file:
        raise UsageError("say where the credentials go", f"busway keys bus {role} --file {role}.creds")
    if role == "worker" and not options.models:
        raise UsageError("a worker may serve the models that its credentials name", "--models NAME, repeatable")
    name = _name_of(role, options)
    vault, path = find_vault(config.state_dir), Path(options.file)
    expires_at = int(time.time() + options.expires_days * _DAY_S) if options.expires_days is not None else 0
    name, _ = vault.issue(role, name=name, models=map(slug, options.models), expires_at=expires_at, path=path)
    running = read_running(Path(config.state_dir))
    url = running.nats_url if running else "tls://HOST:4222"
    say(f"{path} makes its holder {name}, {role}. It is a secret, and for one process at a time.\n")
    if role == "tenant":
        say(f"  nats --server {url} --tlsca {vault.authority_file} --creds {path} --inbox-prefix _INBOX.{name} \\")
        say(f"    request {config.namespace}.ask.v1.MODEL.{name} 'What is Busway?'")
    else:
        settings = {"url": url, "credentials_file": path, "tls_ca": vault.authority_file}
        words = " ".join(f"--set bus.{key}={value}" for key, value in settings.items())
        say(f"  busway {role if role in ('worker', 'frontend', 'router') else 'tap'} {words}")
    say(f"\nbusway keys revoke {name} ends it.")


def revoke(config: Config, name: str) -> None:
    """Make credentials void; a broker that runs here cuts their connections at once."""
    vault = find_vault(config.state_dir)
    vault.revoke(name)
    running = read_running(Path(config.state_dir))
    pids = [process.pid for process in running.processes if process.role == "nats"] if running else []
    if not pids:
        say(f"revoked {name}: it is refused from the next `busway up --secure` on")
        return
    _reload(config, vault, pids[0])
    say(f"revoked {name}: its connections are cut, and it is refused from now on")


def _reload(config: Config, vault: Vault, pid: int) -> None:
    subjects = Subjects(config.namespace)
    change_guard(config.state_dir, vault.guard(subjects, load_declared(subjects), ()))
    os.kill(pid, signal.SIGHUP)


def _role(word: str) -> BusRole:
    for role in ROLES:
        if role == word:
            return role
    raise UsageError(f"{word!r} is no role on the bus{did_you_mean(word, ROLES)}", f"one of {', '.join(ROLES)}")


def _name_of(role: BusRole, options: argparse.Namespace) -> str:
    """Return the name that credentials are for: a tenant's slug, as subjects have it; else a new one."""
    if role != "tenant":
        return new_id(role[0])
    if options.tenant == "default":
        raise BadConfig("whose credentials are they? busway keys bus tenant --tenant NAME --file FILE")
    return slug(options.tenant)
