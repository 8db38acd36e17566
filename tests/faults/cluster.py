"""I/O. The same system on a cluster of three brokers, with streams in three copies."""

import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bus.server import free_port, prepare, wait_answering
from bus.server_config import Cluster
from tests.faults.proxy import FaultProxy, fault_proxy
from tests.faults.system import Settings, System, until

NUM_BROKERS = 3
NOWHERE = "127.0.0.1:1"


class Ways:
    """Between brokers: a proxy for each way from one to another."""

    def __init__(self, proxies: dict[tuple[int, int], FaultProxy]) -> None:
        self._proxies = proxies

    def lead_to(self, ports: list[int]) -> None:
        """Take note of where each broker takes routes."""
        for (_, target), proxy in self._proxies.items():
            proxy.port = ports[target]

    def routes_of(self, number: int) -> tuple[str, ...]:
        """Return where a broker finds the others."""
        ways = [proxy.url for (source, _), proxy in self._proxies.items() if source == number]
        return tuple(url.removeprefix("nats://") for url in ways)

    def isolate(self, name: str) -> None:
        """Let nothing through between that broker and the others."""
        for (source, target), proxy in self._proxies.items():
            if name in (f"nats-{source}", f"nats-{target}"):
                proxy.swallow()

    def heal(self) -> None:
        """Let everything through again."""
        for proxy in self._proxies.values():
            proxy.flow()


@asynccontextmanager
async def open_ways() -> AsyncIterator[Ways]:
    """Stand between brokers that are to be, while the context is open."""
    async with AsyncExitStack() as stack:
        pairs = permutations(range(NUM_BROKERS), 2)
        yield Ways({pair: await stack.enter_async_context(fault_proxy()) for pair in pairs})


@contextmanager
def hold_ports() -> Iterator[list[int]]:
    """Reserve a port for each broker while the context is open: nothing else that is prepared meanwhile gets it."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(NUM_BROKERS)]
        for each in sockets:
            each.bind(("127.0.0.1", free_port()))
        yield [each.getsockname()[1] for each in sockets]


class ClusterSystem(System):
    """Brokers are `nats-0` to `nats-2`; whoever connects knows all of them."""

    def __init__(self, folder: Path, settings: Settings, ways: Ways | None = None) -> None:
        """With `ways` brokers meet through these only."""
        super().__init__(folder, {"bus.replicas": NUM_BROKERS, **settings})
        self.brokers = {}
        with hold_ports() as ports:
            if ways:
                ways.lead_to(ports)
            direct = tuple(f"127.0.0.1:{port}" for port in ports)
            for number, port in enumerate(ports):
                place, routes = folder / f"broker-{number}", ways.routes_of(number) if ways else direct
                cluster = Cluster(name=f"nats-{number}", port=port, routes=routes)
                self.brokers[cluster.name] = prepare(str(place), cluster=cluster)
                if ways:
                    _hide(place / "nats" / "cluster.conf")
        urls = ",".join(broker.url for broker in self.brokers.values())
        self.server = replace(self.server, url=urls)

    async def start_nats(self) -> None:
        for name in self.brokers:
            await self.start_broker(name)
        await until(lambda: self.leader() != "")

    async def start_broker(self, name: str) -> None:
        self._spawn(name, self.brokers[name].command, {})
        await wait_answering(self.brokers[name].port)

    def leader(self, stream: str = "", but: str = "") -> str:
        """Return which broker leads a stream, or the cluster, as any other `but` one knows; empty while none does."""
        for name, broker in self.brokers.items():
            if (
                name != but
                and self.processes[name].poll() is None
                and (leader := _leader(_look(broker.monitor_url), stream))
            ):
                return leader
        return ""


def _hide(config: Path) -> None:
    """Have a broker tell the others an address where nobody is, so that they do not find a way round."""
    text = config.read_text()
    config.write_text(text.replace("no_advertise: true", f'advertise: "{NOWHERE}"\n  no_advertise: true'))


def _look(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{url}/jsz?streams=true", timeout=2) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except OSError:
        return {}


def _leader(found: dict[str, Any], stream: str) -> str:
    if not stream:
        return str(found.get("meta_cluster", {}).get("leader", ""))
    for account in found.get("account_details", ()):
        for detail in account.get("stream_detail", ()):
            if detail["name"] == stream:
                return str(detail.get("cluster", {}).get("leader", ""))
    return ""
