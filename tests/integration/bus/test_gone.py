"""A killed process is known to be gone within milliseconds; one that comes back is not."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from bus.config import BusConfig
from bus.connection import open_bus
from bus.gone import CONNECTED, DISCONNECTED, watch_gone
from bus.server import run_server
from bus.subjects import Subjects

pytestmark = pytest.mark.anyio

VICTIM = """
import sys, anyio
from bus.config import BusConfig
from bus.connection import open_bus
from bus.subjects import Subjects
async def main():
    async with open_bus(BusConfig(url=sys.argv[1]), Subjects("t"), name="victim"):
        print("up", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.fixture
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with run_server(str(tmp_path_factory.mktemp("nats"))) as server:
        yield server.url


class Gone:
    """Names in the order in which they were told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._changed = anyio.Event()

    def add(self, name: str) -> None:
        self.names.append(name)
        self._changed.set()

    async def wait_for(self, *names: str) -> None:
        with anyio.fail_after(30):
            while len(self.names) < len(names):
                await self._changed.wait()
                self._changed = anyio.Event()
        assert self.names == list(names)


async def test_a_killed_process_is_gone_and_one_that_returns_is_not(url: str, undisturbed: Any) -> None:
    gone = Gone()
    async with open_bus(BusConfig(url=url), Subjects("t"), name="watcher") as bus:
        with watch_gone(bus, gone.add):
            await bus.flush()
            async with await anyio.open_process([sys.executable, "-c", VICTIM, url]) as victim:
                assert victim.stdout is not None
                await victim.stdout.receive()
                victim.kill()
            await gone.wait_for("victim")

        async def return_in_time() -> None:
            gone.names.clear()
            with watch_gone(bus, gone.add, grace_s=1.0):
                await bus.flush()
                for _ in range(2):
                    async with open_bus(BusConfig(url=url), Subjects("t"), name="restless"):
                        pass
                async with open_bus(BusConfig(url=url), Subjects("t"), name="restless"):
                    async with open_bus(BusConfig(url=url), Subjects("t"), name="last"):
                        pass
                    await gone.wait_for("last")

        await undisturbed(return_in_time, 0.2)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"client":5}', b'{"client":{"name":5}}', b"\xff" * 50])
async def test_whatever_else_is_said_there_does_no_harm(url: str, payload: bytes) -> None:
    gone = Gone()
    async with open_bus(BusConfig(url=url), Subjects("t"), name="watcher") as bus:
        with watch_gone(bus, gone.add, grace_s=0.0):
            bus.publish(DISCONNECTED, payload)
            bus.publish(CONNECTED, payload)
            bus.publish(DISCONNECTED, b'{"client":{"name":"w-1"}}')
            await gone.wait_for("w-1")
