"""I/O. What `busway up --secure` makes: a guarded broker, HTTPS, and credentials for each process that is started."""

import socket
import time
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from bus.certificates import LOCAL_NAMES
from bus.config import Config
from bus.connection import load_declared
from bus.errors import BadConfig
from bus.roles import BusRole
from bus.server_config import Guard
from bus.subjects import Subjects, slug
from bus.vault import Vault, open_vault
from components.worker.model import locate_model

ROLES: dict[str, BusRole] = {"frontend": "frontend", "worker": "worker", "spare": "worker", "router": "router"}
"""By the role of a part; what is not here gets no credentials."""


class Secrets:
    """Issues credentials for one run of a system."""

    def __init__(self, vault: Vault, guard: Guard, model: str, lifetime_s: float) -> None:
        """What is issued lasts `lifetime_s`, and is to be renewed before."""
        self.guard = guard
        self._lifetime_s = lifetime_s
        self._vault = vault
        self._model = model
        self.operator_file, self.observer_file = (
            vault.issue(role, path=vault.credentials_file(role), expires_at=self._ends_at())[1]
            for role in ("operator", "observer")
        )

    def issue(self, role: str) -> Path | None:
        """Return a new file of credentials for a part of this role; None for one that needs none."""
        if role not in ROLES:
            return None
        return self._vault.issue(ROLES[role], models=[self._model], expires_at=self._ends_at())[1]

    def renew(self, issued: Iterable[Path]) -> None:
        """Replace these files, and those for people; whoever has them reads them when its connection is cut."""
        for path in (self.operator_file, self.observer_file, *issued):
            self._vault.renew(path, models=[self._model], expires_at=self._ends_at())

    def _ends_at(self) -> int:
        return int(time.time() + self._lifetime_s)


def open_secrets(config: Config) -> Secrets:
    """Return the secrets of the system, made in its state directory if there are none; raise `BadConfig`."""
    if not config.up.with_nats:
        raise BadConfig("up.secure guards the broker that `busway up` starts: leave up.with_nats as it is")
    vault = open_vault(config.state_dir)
    subjects = Subjects(config.namespace)
    guard = vault.guard(subjects, load_declared(subjects), _names(config))
    return Secrets(vault, guard, slug(locate_model(config.worker)[1]), config.up.credentials_s)


def secure(config: Config, secrets: Secrets) -> Config:
    """Return the configuration with TLS on the bus, and on HTTP where it has no certificate of its own."""
    config = replace(config, bus=replace(config.bus, tls_ca=secrets.guard.tls_ca))
    if config.frontend.tls_cert:
        return config
    return replace(
        config,
        frontend=replace(config.frontend, tls_cert=secrets.guard.tls_cert, tls_key=secrets.guard.tls_key),
    )


def _names(config: Config) -> list[str]:
    """Return by what this machine is reached: what is configured, its own name, and the loopback."""
    bound = [host for host in (config.frontend.host, config.up.nats_host) if host not in ("0.0.0.0", "::")]
    return [*LOCAL_NAMES, socket.gethostname(), *bound, *config.up.names]
