"""Three guarded brokers as one: known to each other by certificates, each of them dispensable, and no other let in."""

import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from msgspec.structs import replace

from bus.config import BusConfig
from bus.connection import load_declared, open_bus
from bus.errors import BusUnavailable
from bus.gone import watch_gone
from bus.protocol import Bus
from bus.server import Server, free_port, run_server
from bus.server_config import Cluster, Guard
from bus.subjects import Subjects
from bus.vault import Vault, open_vault

pytestmark = pytest.mark.anyio

SUBJECTS = Subjects("busway")
NAMES = ("localhost", "127.0.0.1")


class Brokers(NamedTuple):
    """Who runs, and what made them."""

    servers: list[Server]
    vault: Vault
    guard: Guard
    routes: tuple[str, ...]

    def config(self, role: Any, *, url: str = "") -> BusConfig:
        urls = url or ",".join(server.url for server in self.servers)
        path = str(self.vault.issue(role)[1])
        return BusConfig(url=urls, credentials_file=path, tls_ca=self.guard.tls_ca, replicas=3)


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    vault = open_vault(str(tmp_path))
    guard = vault.guard(SUBJECTS, load_declared(SUBJECTS), NAMES)
    ports = [free_port() for _ in range(3)]
    routes = tuple(f"127.0.0.1:{port}" for port in ports)
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                run_server(
                    str(tmp_path / f"broker-{port}"),
                    guard=guard,
                    cluster=Cluster(name=f"b-{port}", port=port, routes=routes),
                )
            )
            for port in ports
        ]
        yield Brokers(servers, vault, guard, routes)


def num_routes(server: Server) -> int:
    """Return how many other brokers it speaks to."""
    with urllib.request.urlopen(f"{server.files.monitor_url}/routez", timeout=5) as answer:
        return len({route["remote_id"] for route in json.load(answer)["routes"]})


async def test_guarded_brokers_are_one(brokers: Brokers, tmp_path: Path, eventually: Any) -> None:
    async with open_bus(brokers.config("frontend"), SUBJECTS, name="f") as frontend:
        await frontend.ensure()
        await frontend.append(SUBJECTS.job("acme"), b"kept")
        info = json.loads((await frontend.request("$JS.API.STREAM.INFO.BUSWAY_JOBS", b"")).payload)
        assert len(info["cluster"]["replicas"]) == 2

        # What happens to connections is told across brokers.
        gone: list[str] = []
        first, second = (
            brokers.config(role, url=server.url)
            for role, server in zip(("observer", "worker"), brokers.servers, strict=False)
        )
        async with open_bus(first, SUBJECTS, name="o") as observer:
            with watch_gone(observer, gone.append, grace_s=0.0):
                await observer.flush()
                async with open_bus(second, SUBJECTS, name="w") as worker:
                    name = worker._link._name
                await eventually(lambda: name in gone)

        leader = info["cluster"]["leader"]
        await next(server for server in brokers.servers if leader.removeprefix("b-") in server.files.config_path).kill()
        with anyio.fail_after(30):
            while not await stored(frontend):  # noqa: ASYNC110
                await anyio.sleep(0.1)
        info = json.loads((await frontend.request("$JS.API.STREAM.INFO.BUSWAY_JOBS", b"")).payload)
        assert info["state"]["messages"] >= 2


async def stored(bus: Bus) -> bool:
    try:
        await bus.append(SUBJECTS.job("acme"), b"new")
    except BusUnavailable:
        return False
    return True


@pytest.mark.parametrize("shown", ["none", "server", "forged"])
async def test_a_broker_without_a_certificate_for_routes_is_not_let_in(
    brokers: Brokers, tmp_path: Path, eventually: Any, shown: str
) -> None:
    await eventually(lambda: all(num_routes(server) == 2 for server in brokers.servers))
    guard = brokers.guard
    if shown == "forged":
        theirs = open_vault(str(tmp_path / "theirs")).guard(SUBJECTS, load_declared(SUBJECTS), NAMES)
        guard = replace(guard, route_cert=theirs.route_cert, route_key=theirs.route_key)
    elif shown == "server":
        # What frontends have for HTTPS.
        guard = replace(guard, route_cert=guard.tls_cert, route_key=guard.tls_key)
    cluster = Cluster(name="b-rogue", port=free_port(), routes=brokers.routes)
    async with run_server(str(tmp_path / "rogue"), guard=None if shown == "none" else guard, cluster=cluster) as rogue:
        log = Path(f"{rogue.files.config_path}.log")
        await eventually(lambda: "TLS" in log.read_text() or "Router connection closed" in log.read_text())
        assert num_routes(rogue) == 0
        assert all(num_routes(server) == 2 for server in brokers.servers)
