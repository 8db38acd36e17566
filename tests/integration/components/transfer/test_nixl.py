"""What only NIXL has: a network transport whose reads are under way for a while, and metadata that can kill."""

import signal

import pytest

from bus.codec import encode
from tests.integration.components.transfer.conftest import StartPeer

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("transport", ["network"])
async def test_a_read_from_a_peer_that_stands_still_ends_and_brings_no_byte_later(start_peer: StartPeer) -> None:
    """Over TCP, as between hosts: the reader closes its agent, since giving up a read leaves its bytes arriving."""
    async with start_peer(tls="tcp,self") as source, start_peer(tls="tcp,self") as reader:
        before = await source.offer(100, 500)
        assert await reader.ask("read", encode(before).hex()) == [None]
        offer = await source.offer(600, 500)
        held = await reader.offer(0, 10)
        digest = await reader.ask("digest")
        source.process.send_signal(signal.SIGSTOP)
        assert await reader.ask("read", encode(offer).hex()) == ["transfer_timeout"]
        source.process.send_signal(signal.SIGCONT)
        assert await reader.ask("digest") == digest
        assert (await reader.offer(0, 10)).source.agent != held.source.agent, "a new agent has a new name"
        async with start_peer(tls="tcp,self") as other:
            assert await reader.ask("read", encode(await other.offer(0, 500)).hex()) == [None]
            assert await other.ask("read", encode(await reader.offer(0, 500)).hex()) == [None]
        assert await reader.ask("digest") != digest
