"""The brokers that the contract is held on: a real server and the one in memory."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest

from bus.config import BusConfig
from bus.connection import NatsBus, open_bus
from bus.protocol import Bus
from bus.server import Server
from bus.subjects import Subjects
from bus.testing import MemoryBroker


class NatsBroker:
    """A namespace on a nats-server."""

    def __init__(self, url: str, namespace: str, server: Server | None = None) -> None:
        self._config = BusConfig(url=url)
        self._server = server
        self.subjects = Subjects(namespace)

    def connect(self, name: str) -> AbstractAsyncContextManager[NatsBus]:
        return open_bus(self._config, self.subjects, name=name)

    async def restart(self) -> None:
        assert self._server is not None
        await self._server.kill()
        await self._server.start()


Broker = NatsBroker | MemoryBroker


@pytest.fixture(params=["nats", "memory"])
def broker(request: pytest.FixtureRequest, namespace: str) -> Broker:
    if request.param == "memory":
        return MemoryBroker(namespace)
    return NatsBroker(request.getfixturevalue("nats_url"), namespace)


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    async with broker.connect("test") as bus:
        await bus.ensure()
        yield bus


@pytest.fixture
async def other(broker: Broker) -> AsyncIterator[Bus]:
    """A second connection to the same broker."""
    async with broker.connect("other") as other:
        yield other


@pytest.fixture(params=["nats", "memory"])
def breakable(request: pytest.FixtureRequest, namespace: str) -> Broker:
    """A broker that the test may restart; what it held in memory is gone then."""
    if request.param == "memory":
        return MemoryBroker(namespace)
    server = request.getfixturevalue("own_server")
    return NatsBroker(server.url, namespace, server)
