"""`busway up --secure`: TLS everywhere, each process itself and nobody else, and it heals as without."""

import json
import os
import re
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.config import BusConfig
from bus.connection import open_bus
from bus.errors import BusUnavailable
from bus.subjects import Subjects

WORDS = ("--secure", "--engine", "mock", "--workers", "2", "--routers", "1", "--port", "0")
Wait = Callable[..., float]


class System:
    """What runs, as `up.json` tells it."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.directory: Path = shell.directory

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.directory / ".busway" / "up.json").read_text())
        return state

    def pid_of(self, name: str) -> int:
        return next((int(p["pid"]) for p in self.state["processes"] if p["name"] == name), 0)

    def ask(self, context: ssl.SSLContext | None = None) -> int:
        """Return the output tokens of a chat over HTTPS, checked by the system's own authority."""
        state = self.state
        context = context or ssl.create_default_context(cafile=state["tls_ca"])
        body = {"model": "busway-tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        request = urllib.request.Request(
            f"{state['url']}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            tokens: int = json.load(answer)["usage"]["completion_tokens"]
        return tokens

    def answers(self) -> bool:
        try:
            return self.ask() == 8
        except OSError:
            return False

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in (self.directory / ".busway" / "logs").glob("*.log*"))

    def config(self, credentials: str) -> BusConfig:
        state = self.state
        return BusConfig(
            url=state["nats_url"], credentials_file=str(self.directory / credentials), tls_ca=state["tls_ca"]
        )


@pytest.fixture(scope="module")
def system(shared_shell: Any, wait_for: Wait) -> System:
    up = shared_shell.start("up", *WORDS, "--set", "up.nats_port=0")
    wait_for(lambda: "ready in" in shared_shell.output() or up.poll() is not None, explain=shared_shell.output)
    return System(shared_shell)


def test_the_commands_find_what_they_need(system: System) -> None:
    for words in (("chat", "hi"), ("doctor", "--set", "worker.engine=mock"), ("tap", "--count", "1")):
        ended = system.shell.run(*words)
        assert ended.returncode == 0, (words, ended.stdout[-500:], ended.stderr[-500:])
    bench = system.shell.run("bench", "--streams", "4", "--duration", "0.5", "--tokens", "4")
    assert "whole path" in bench.stdout, bench.stderr


def test_https_is_checked_and_http_is_not_answered(system: System) -> None:
    assert system.ask() == 8
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        system.ask(ssl.create_default_context())
    plain = system.state["url"].replace("https:", "http:")
    with pytest.raises(OSError, match=r".*"):
        urllib.request.urlopen(f"{plain}/live", timeout=60)


def test_tenants_ask_for_themselves_and_read_nothing_else(system: System) -> None:
    for tenant in ("acme", "umbrella"):
        made = system.shell.run("keys", "bus", "tenant", "--tenant", tenant, "--file", f"{tenant}.creds")
        assert made.returncode == 0, made.stderr
        assert (system.directory / f"{tenant}.creds").stat().st_mode & 0o077 == 0
    subjects = Subjects("busway")

    async def talk() -> None:
        async with (
            open_bus(system.config("acme.creds"), subjects, name="x") as acme,
            open_bus(system.config("umbrella.creds"), subjects, name="x") as umbrella,
        ):
            heard: list[bytes] = []
            inbox = umbrella.new_inbox()
            umbrella.subscribe(inbox, lambda incoming: heard.append(incoming.payload))
            umbrella.subscribe("busway.>", lambda incoming: heard.append(incoming.payload))
            await umbrella.flush()
            answer = await acme.request(
                subjects.ask("busway-tiny", "acme"), b'{"prompt":"hi","max_tokens":4}', timeout_s=60
            )
            assert json.loads(answer.payload)["done"]
            with pytest.raises(BusUnavailable):
                await acme.request(subjects.ask("busway-tiny", "umbrella"), b"hi", timeout_s=0.5)
            acme.publish(subjects.ask("busway-tiny", "acme"), b'{"prompt":"hi","max_tokens":4}', reply=inbox)
            await acme.request(subjects.ask("busway-tiny", "acme"), b'{"prompt":"hi","max_tokens":4}', timeout_s=60)
            await umbrella.flush()
            assert heard == []

    anyio.run(talk)


def test_a_worker_from_elsewhere_joins_with_its_own_credentials_until_they_are_revoked(
    system: System, wait_for: Wait
) -> None:
    made = system.shell.run("keys", "bus", "worker", "--models", "busway-tiny", "--file", "w.creds")
    name = re.search(r"\bw-[0-9a-f]{8}\b", made.stdout)
    assert name, made.stderr
    config = system.config("w.creds")
    settings = [f"bus.{key}={getattr(config, key)}" for key in ("url", "credentials_file", "tls_ca")]
    words = [word for setting in settings for word in ("--set", setting)]
    worker = system.shell.start("worker", "--engine", "mock", "--set", "log.format=json", *words)
    wait_for(lambda: "worker.started" in system.shell.output(), explain=system.shell.output)
    assert name[0] in system.shell.output()
    revoked = system.shell.run("keys", "revoke", name[0])
    assert revoked.returncode == 0, revoked.stderr
    wait_for(lambda: "bus.disconnected" in system.shell.output(), explain=system.shell.output)
    wait_for(lambda: "Authorization Violation" in system.shell.output(), explain=system.shell.output)
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    assert system.ask() == 8


@pytest.mark.parametrize("victim", ["worker-0", "router-0", "nats", "frontend-0"])
def test_it_heals(system: System, wait_for: Wait, victim: str) -> None:
    pid = system.pid_of(victim)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: system.pid_of(victim) not in (0, pid))
    wait_for(system.answers, explain=system.logs)


def test_secrets_stay_in_their_files(system: System) -> None:
    """No seed in logs, command lines, environments, cards or the files of configuration."""
    state_dir = system.directory / ".busway"
    seeds = set(
        re.findall(r"\bS[A-Z2-7]{57}\b", "".join(p.read_text() for p in (state_dir / "security").rglob("*.creds")))
    )
    seeds |= set(re.findall(r"\bS[A-Z2-7]{57}\b", (state_dir / "security" / "authority.json").read_text()))
    assert len(seeds) > 10
    told = system.logs() + system.shell.first_output() + (state_dir / "config.toml").read_text()
    told += (state_dir / "up.json").read_text() + "".join(p.read_text() for p in (state_dir / "nats").glob("*.conf"))
    for process in system.state["processes"]:
        for kind in ("cmdline", "environ"):
            told += Path(f"/proc/{process['pid']}/{kind}").read_bytes().decode("utf-8", "replace")

    async def read_cards() -> str:
        subjects = Subjects("busway")
        async with open_bus(system.config(".busway/security/credentials/operator.creds"), subjects, name="x") as bus:
            return "\n".join(str(entry) for entry in await bus.bucket("REG").entries())

    cards = anyio.run(read_cards)
    assert "worker." in cards
    told += cards
    assert not [seed for seed in seeds if seed in told]
    for path in (state_dir / "security").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_nothing_that_a_process_needs_was_denied(system: System) -> None:
    assert "bus.refused" not in system.logs()


def test_what_a_dead_process_was_given_is_gone(system: System, wait_for: Wait) -> None:
    folder = system.directory / ".busway" / "security" / "credentials"
    living = {process["role"] for process in system.state["processes"]} - {"nats"}
    assert living == {"worker", "router", "frontend"}
    kept = len([p for p in system.state["processes"] if p["role"] != "nats"]) + len({"operator", "observer"})
    wait_for(lambda: len(list(folder.iterdir())) == kept)


def test_credentials_end_and_are_renewed_while_everything_runs(shell: Any, wait_for: Wait) -> None:
    """Each process is cut off when its credentials end, and is back with new ones."""
    settings = ("--set", "up.nats_port=0", "--set", "up.credentials_s=3")
    up = shell.start("up", *WORDS, *settings)
    wait_for(lambda: "ready in" in shell.output() or up.poll() is not None, explain=shell.output)
    system = System(shell)

    def num_renewed() -> int:
        return system.logs().count("User Authentication Expired")

    processes = system.state["processes"]
    answered, deadline = [], time.monotonic() + 180
    while num_renewed() < 2 * len(processes):
        answered.append(system.answers())
        assert time.monotonic() < deadline, system.logs()[-5000:]
    outages = [before for before, after in pairwise(answered) if before and not after]
    assert len(outages) < 4 * len(processes), "a frontend that is just being cut off says 503"
    assert system.state["processes"] == processes, "nobody died of it"
    assert system.logs().count("bus.reconnected") >= len(processes)
    assert "bus.refused" not in system.logs()
    assert shell.run("tap", "--count", "1").returncode == 0
    up.terminate()
    assert up.wait(60) == 0
