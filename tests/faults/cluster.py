"""I/O. The same system on a cluster of three brokers, with streams in three copies."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bus.server import free_port, prepare, wait_answering
from bus.server_config import Cluster
from tests.faults.system import Settings, System, until

NUM_BROKERS = 3


class ClusterSystem(System):
    """Brokers are `nats-0` to `nats-2`; whoever connects knows all of them."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, {"bus.replicas": NUM_BROKERS, **settings})
        ports = [free_port() for _ in range(NUM_BROKERS)]
        routes = tuple(f"127.0.0.1:{port}" for port in ports)
        self.brokers = {
            f"nats-{number}": prepare(
                str(folder / f"broker-{number}"), cluster=Cluster(name=f"nats-{number}", port=port, routes=routes)
            )
            for number, port in enumerate(ports)
        }
        urls = ",".join(broker.url for broker in self.brokers.values())
        self.server = replace(self.server, url=urls)

    async def start_nats(self) -> None:
        for name in self.brokers:
            await self.start_broker(name)
        await until(lambda: self.leader() != "")

    async def start_broker(self, name: str) -> None:
        self._spawn(name, self.brokers[name].command, {})
        await wait_answering(self.brokers[name].port)

    def leader(self, stream: str = "") -> str:
        """Return which broker leads a stream, or the cluster; empty while none does."""
        for name, broker in self.brokers.items():
            if self.processes[name].poll() is None and (leader := _leader(_look(broker.monitor_url), stream)):
                return leader
        return ""


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
