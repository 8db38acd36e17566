"""A guarded nats-server, and clients that speak raw protocol over TLS with the credentials of any role."""

import contextlib
import json
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.access import client_context, read_access
from bus.config import BusConfig
from bus.connection import load_declared, open_bus
from bus.roles import BusRole
from bus.server import ServerFiles, change_guard, prepare, wait_answering
from bus.subjects import Subjects
from bus.vault import Vault, open_vault

SUBJECTS = Subjects("busway")
NAMES = ("localhost", "127.0.0.1")
MODEL = "tiny"
_VIOLATION = re.compile(rb"-ERR 'Permissions Violation for (Publish|Subscription) to \"([^\"]*)\"")


class Guarded:
    """A running server that lets nobody in without credentials, and who makes them."""

    def __init__(self, files: ServerFiles, vault: Vault, process: "subprocess.Popen[bytes]", directory: Path) -> None:
        self.files = files
        self.vault = vault
        self.process = process
        self._directory = directory

    def config(self, role: BusRole, name: str, *, models: Sequence[str] = (MODEL,), expires_at: int = 0) -> BusConfig:
        """How a process of that role and name connects."""
        path = self._directory / f"{role}-{name}.creds"
        if not path.exists():
            self.vault.issue(role, name=name, models=models, expires_at=expires_at, path=path)
        return BusConfig(url=self.files.url, credentials_file=str(path), tls_ca=str(self.vault.authority_file))

    def open(self, role: BusRole, name: str, **options: Any) -> Any:
        """A bus for a process of that role."""
        return open_bus(self.config(role, name, **options), SUBJECTS, name="said-by-itself")

    def reload(self) -> None:
        """Let the server read what the vault has now."""
        change_guard(str(self._directory), self.guard())
        self.process.send_signal(signal.SIGHUP)

    def log(self) -> str:
        """What the server wrote."""
        return (self._directory / "server.log").read_text()

    def guard(self) -> Any:
        return self.vault.guard(SUBJECTS, load_declared(SUBJECTS), NAMES)


class RawClient:
    """A client that sends what it is told, and notes what it gets; it blocks, for 5 s at most."""

    def __init__(self, config: BusConfig, context: ssl.SSLContext | None = None) -> None:
        """Connect and read the greeting; trust what the configuration says, or `context`."""
        host, port = config.url.removeprefix("tls://").split(":")
        plain = socket.create_connection((host, int(port)), timeout=5)
        greeting = b""
        while not greeting.endswith(b"\r\n"):
            greeting += plain.recv(1)
        self.greeting: dict[str, Any] = json.loads(greeting.removeprefix(b"INFO "))
        self._socket = (context or client_context(config.tls_ca)).wrap_socket(plain, server_hostname=host)
        self._config = config

    def log_in(self) -> "RawClient":
        """Show the credentials that are configured."""
        access = read_access(self._config)
        hello = {"verbose": False, "headers": True, "no_responders": True}
        proof = {"jwt": access.token().decode(), "sig": access.sign(self.greeting["nonce"]).decode()}
        self._socket.sendall(b"CONNECT " + json.dumps(hello | proof).encode() + b"\r\n")
        return self

    def say(self, *lines: bytes) -> bytes:
        """Send these commands; return all that the server says until it has processed them, or hangs up."""
        said = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self._socket.sendall(b"".join(line + b"\r\n" for line in lines) + b"PING\r\n")
            while b"PONG\r\n" not in said and (data := self._socket.recv(65536)):
                said += data
        return said

    def denied(self, *lines: bytes) -> set[tuple[str, str]]:
        """Send these commands; return what of them the server denies: (verb, subject)."""
        return {(verb.decode(), subject.decode()) for verb, subject in _VIOLATION.findall(self.say(*lines))}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A guarded server for the tests of one module."""
    directory = tmp_path_factory.mktemp("guarded")
    vault = open_vault(str(directory))
    files = prepare(str(directory), guard=vault.guard(SUBJECTS, load_declared(SUBJECTS), NAMES))
    log = (directory / "server.log").open("wb")
    with log, subprocess.Popen(files.command, stdout=log, stderr=log) as process:
        try:
            anyio.run(wait_answering, files.port)
            yield Guarded(files, vault, process, directory)
        finally:
            process.terminate()


@pytest.fixture
def raw() -> type[RawClient]:
    """Clients that speak raw protocol."""
    return RawClient


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """Takes any certificate, as somebody does who only wants to look."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
