"""Peers in processes of their own, over both transports."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from bus.codec import codec
from bus.messages.transfer import BlockOffer
from components.engines.exchange import BlockMemory
from components.transfer import Transfer, loopback, nixl, open_transfer
from components.transfer.open import Transport
from tests.integration.components.transfer import peer as peer_module
from tests.integration.components.transfer.peer import make_memory

PEER = Path(peer_module.__file__)
NUM_BLOCKS, BLOCK_BYTES = 1200, 4096
HAS_NIXL = importlib.util.find_spec("nixl_cu12") is not None or importlib.util.find_spec("nixl_cu13") is not None


class Peer:
    """A process that runs peer.py."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._said: list[list[Any]] = []

    async def tell(self, *words: Any) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()

    async def hear(self, *start: Any, timeout_s: float = 30.0) -> list[Any]:
        """Return the rest of the first line that starts so, now or later; other lines are kept."""
        with anyio.fail_after(timeout_s):
            while True:
                for line in self._said:
                    if line[: len(start)] == list(start):
                        self._said.remove(line)
                        return line[len(start) :]
                assert self.process.stdout is not None
                line = await to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
                assert line, f"the peer ended with {self.process.wait()}"
                if line.startswith(b"["):
                    self._said.append(json.loads(line))

    async def ask(self, word: str, *rest: Any) -> list[Any]:
        """Write a line and return the rest of the answer."""
        await self.tell(word, *rest)
        return await self.hear("done" if word in ("fill", "scribble") else word)

    async def offer(self, first: int, count: int) -> BlockOffer:
        """Let it offer its blocks `[first, first + count)`."""
        return codec(BlockOffer).decode(bytes.fromhex((await self.ask("offer", first, count))[0]))


@contextmanager
def _started(transport: str, *, lease_s: float, fingerprint: str, block_bytes: int, tls: str | None) -> Iterator[Peer]:
    environment = dict(os.environ) if tls is None else {**os.environ, "UCX_TLS": tls}
    command = [sys.executable, PEER, transport, NUM_BLOCKS, block_bytes, lease_s, fingerprint]
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    with process:
        try:
            yield Peer(process)
        finally:
            process.kill()


StartPeer = Callable[..., AbstractAsyncContextManager[Peer]]


@pytest.fixture
def start_peer(transport: str) -> StartPeer:
    """Start a peer that ends with the context; it has `NUM_BLOCKS` blocks."""

    @asynccontextmanager
    async def start(
        *, lease_s: float = 10.0, fingerprint: str = "f", block_bytes: int = BLOCK_BYTES, tls: str | None = None
    ) -> AsyncIterator[Peer]:
        with _started(transport, lease_s=lease_s, fingerprint=fingerprint, block_bytes=block_bytes, tls=tls) as peer:
            await peer.hear("ready")
            yield peer

    return start


class SharedPeers(dict[str, Peer]):
    """Peers by transport, started when somebody asks for them."""

    def __init__(self, start: Callable[[str], Peer]) -> None:
        super().__init__()
        self._start = start

    def __missing__(self, transport: str) -> Peer:
        self[transport] = self._start(transport)
        return self[transport]


@pytest.fixture(scope="session")
def shared_peers() -> Iterator[SharedPeers]:
    """Peers for all tests that do not harm them."""
    with ExitStack() as stack:

        def start(transport: str) -> Peer:
            started = _started(transport, lease_s=10.0, fingerprint="f", block_bytes=BLOCK_BYTES, tls=None)
            return stack.enter_context(started)

        yield SharedPeers(start)


@pytest.fixture
async def peer(transport: str, shared_peers: SharedPeers) -> Peer:
    """A peer that others use, too: to be left as it was."""
    shared = shared_peers[transport]
    await shared.ask("ping")
    return shared


_nixl = pytest.mark.skipif(not HAS_NIXL, reason="no NIXL")


@pytest.fixture(params=["loopback", "sockets", *(pytest.param(name, marks=_nixl) for name in ("nixl", "network"))])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each transport in turn, as peers call it.

    With `sockets` this process reads as where nobody may read the memory of others, with `network` NIXL does all.
    """
    if request.param == "sockets":
        monkeypatch.setattr(loopback, "peer_pid", lambda _: None)
        return "loopback"
    if request.param == "network":
        monkeypatch.setattr(nixl, "this_host", str)
    return str(request.param)


def own_transport(transport: str) -> Transport:
    """Return how this process opens what peers call `transport`."""
    return "loopback" if transport == "loopback" else "nixl"


@pytest.fixture
def memory() -> BlockMemory:
    """Blocks of our own, all zeros."""
    return make_memory(NUM_BLOCKS, BLOCK_BYTES)


@pytest.fixture
async def ours(memory: BlockMemory, transport: str) -> AsyncIterator[Transfer]:
    """Our side."""
    async with open_transfer(memory, "w-test", transport=own_transport(transport)) as transfer:
        yield transfer
