"""What all transports keep, with two processes: the right bytes or an error, and every block comes back."""

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import pytest

from bus.codec import encode
from bus.errors import BuswayError, Malformed, TransferFailed, TransferRefused
from bus.messages.transfer import BlockOffer
from components.engines.exchange import BlockMemory
from components.transfer import Ending, Source, Transfer, open_transfer
from components.transfer.checks import digest
from tests.integration.components.transfer.conftest import BLOCK_BYTES, Peer, StartPeer, own_transport
from tests.integration.components.transfer.peer import content

pytestmark = pytest.mark.anyio


async def test_the_blocks_that_were_asked_for_arrive_and_no_others(
    peer: Peer, ours: Transfer, memory: BlockMemory
) -> None:
    offer = await peer.offer(100, 1000)
    places = random.Random(1).sample(range(memory.num_blocks), 900)
    async with ours.open(offer) as source:
        await source.read(50, places[:400])
        await source.read(450, places[400:])
        await source.read(0, [])
    for at, place in enumerate(places):
        assert memory.row(place) == content(150 + at, BLOCK_BYTES)
    for place in set(range(memory.num_blocks)) - set(places):
        assert memory.row(place) == bytes(memory.block_bytes)
    assert await peer.hear("ended", offer.lease) == ["released"]


async def test_requests_share_a_pair_of_agents(peer: Peer, ours: Transfer, memory: BlockMemory) -> None:
    async def read(offer: BlockOffer, first: int) -> None:
        async with ours.open(offer) as source:
            for at in range(first, first + 50, 10):
                await source.read(at - first, range(at, at + 10))

    offers = [(await peer.offer(first, 50), first) for first in range(0, 1000, 50)]
    async with anyio.create_task_group() as tasks:
        for offer, first in offers:
            tasks.start_soon(read, offer, first)
    for block in range(1000):
        assert memory.row(block) == content(block, BLOCK_BYTES)
    for offer, _ in offers:
        assert await peer.hear("ended", offer.lease) == ["released"]


async def test_a_worker_reads_its_own_offer(
    ours: Transfer, memory: BlockMemory, eventually: Callable[..., Any]
) -> None:
    memory.row(3)[:] = b"\7" * memory.block_bytes
    endings: list[Ending] = []
    async with ours.open(ours.offer([3], endings.append)) as source:
        await source.read(0, [8])
    assert memory.row(8) == memory.row(3)
    await eventually(lambda: endings == ["released"])


async def test_blocks_that_were_taken_back_are_not_used(peer: Peer, ours: Transfer, memory: BlockMemory) -> None:
    """They are taken back and overwritten while they are read: all of them are right, or there is an error."""
    outcomes: set[str] = set()
    dice = random.Random(2)
    for _ in range(30):
        offer = await peer.offer(0, 1000)
        async with ours.open(offer) as source, anyio.create_task_group() as tasks:
            await peer.tell("withdraw", offer.lease)
            tasks.start_soon(peer.ask, "scribble", 0, 1000)
            await anyio.sleep(dice.random() * 0.003)
            try:
                await source.read(0, range(1000))
            except TransferFailed:
                outcomes.add("refused")
            else:
                outcomes.add("right")
                assert all(memory.row(block) == content(block, BLOCK_BYTES) for block in range(1000))
        await peer.ask("fill", 0, 1000)
    assert "refused" in outcomes
    offer = await peer.offer(0, 10)
    async with ours.open(offer) as source:
        await source.read(0, range(10))
    assert all(memory.row(block) == content(block, BLOCK_BYTES) for block in range(10))


async def test_leases_expire_without_a_reader_and_are_kept_for_one(
    start_peer: StartPeer, ours: Transfer, undisturbed: Callable[..., Any]
) -> None:
    async with start_peer(lease_s=0.4) as peer:

        async def keep() -> None:
            unread, read = await peer.offer(0, 10), await peer.offer(10, 10)
            async with ours.open(read) as source:
                assert await peer.hear("ended", unread.lease) == ["expired"]
                again = await peer.offer(20, 10)
                assert await peer.hear("ended", again.lease) == ["expired"], "twice the time of the one that is read"
                await source.read(0, range(10))
            assert await peer.hear("ended", read.lease) == ["released"]
            async with ours.open(unread) as source:
                with pytest.raises(TransferFailed, match="took its KV blocks back"):
                    await source.read(0, range(10))

        await undisturbed(keep, 0.1)


async def test_a_peer_killed_while_it_is_read_is_an_error_and_its_next_life_is_read(
    start_peer: StartPeer, ours: Transfer, memory: BlockMemory
) -> None:
    dice = random.Random(3)
    for _ in range(2):
        async with start_peer() as peer:
            offer = await peer.offer(0, 1000)
            async with ours.open(offer) as source:
                await source.read(0, range(1000))
                assert memory.row(999) == content(999, BLOCK_BYTES)

                failures: list[TransferFailed] = []
                with anyio.fail_after(30):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_read_until_it_fails, source, failures)
                        await anyio.sleep(dice.random() * 0.01)
                        peer.process.kill()
                assert len(failures) == 1
            peer.process.wait()
            with pytest.raises(TransferFailed):
                async with ours.open(offer) as source:
                    await source.read(0, range(10))


async def test_the_blocks_of_a_reader_that_dies_come_back(
    start_peer: StartPeer,
    memory: BlockMemory,
    transport: str,
    eventually: Callable[..., Any],
    undisturbed: Callable[..., Any],
) -> None:
    async def lose_a_reader() -> None:
        endings: list[Ending] = []
        async with (
            open_transfer(memory, "w-test", transport=own_transport(transport), lease_s=0.5) as ours,
            start_peer() as reader,
            start_peer() as other,
        ):
            await reader.tell("hold", encode(ours.offer(range(1000), endings.append)).hex())
            assert await reader.hear("held", timeout_s=3.0) == []
            assert endings == []
            reader.process.kill()
            await eventually(lambda: endings == ["expired"])
            assert await other.ask("read", encode(ours.offer(range(1000), endings.append)).hex()) == [None]
            await eventually(lambda: endings == ["expired", "released"])

    await undisturbed(lose_a_reader, 0.1)


async def test_a_cancelled_read_brings_no_byte_after_it_ended(peer: Peer, ours: Transfer, memory: BlockMemory) -> None:
    assert memory.buffer is not None
    dice = random.Random(4)
    for _ in range(20):
        offer = await peer.offer(0, 1000)
        async with ours.open(offer) as source:
            with anyio.move_on_after(dice.random() * 0.002):
                await source.read(0, range(1000))
            memory.buffer[:] = bytes(len(memory.buffer))
        assert await peer.hear("ended", offer.lease) == ["released"]
        assert memory.buffer == bytes(len(memory.buffer))
    offer = await peer.offer(0, 10)
    async with ours.open(offer) as source:
        await source.read(0, range(10))
    assert memory.row(9) == content(9, BLOCK_BYTES)


async def test_other_layouts_are_refused(start_peer: StartPeer, ours: Transfer) -> None:
    async with start_peer(fingerprint="g") as peer:
        with pytest.raises(TransferRefused, match="'g', ours 'f'"):
            async with ours.open(await peer.offer(0, 1)):
                pass


async def test_hostile_offers_are_errors_and_harm_nothing(peer: Peer, ours: Transfer, memory: BlockMemory) -> None:
    good = await peer.offer(0, 10)

    def with_endpoint(endpoint: bytes, **changes: Any) -> BlockOffer:
        source = msgspec.structs.replace(
            good.source, agent="w-evil", endpoint=endpoint, endpoint_digest=digest(endpoint), **changes
        )
        return msgspec.structs.replace(good, source=source)

    endpoint = good.source.endpoint
    for bad in (
        *(
            with_endpoint(each)
            for each in (b"", b"/", b"\xff\xfe", b"/var/run/docker.sock", b"x" * 1000, endpoint + b"x")
        ),
        *(
            msgspec.structs.replace(good, source=msgspec.structs.replace(good.source, endpoint=each))
            for each in (endpoint[:-1] + b"~", endpoint[:-4], endpoint * 2)
        ),
    ):
        with pytest.raises((Malformed, TransferFailed)):
            async with ours.open(bad) as source:
                await source.read(0, range(10))
    for wrong in (
        msgspec.structs.replace(good, lease=good.lease ^ 1),
        msgspec.structs.replace(good, slot=good.slot - 1),
    ):
        with pytest.raises(BuswayError):
            async with ours.open(wrong) as source:
                await source.read(0, range(10))
    lies: tuple[dict[str, int], ...] = ({"num_blocks": 2**31}, {"pool_address": 4096}, {"seals_address": 4096})
    for lie in lies:
        offer = await peer.offer(0, 10)
        with suppress(BuswayError):  # who does not need to know is not deceived
            source_of_lies = msgspec.structs.replace(offer.source, **lie)
            async with ours.open(msgspec.structs.replace(offer, source=source_of_lies)) as source:
                await source.read(0, range(10))
            assert memory.row(9) == content(9, BLOCK_BYTES)
    async with ours.open(await peer.offer(0, 10)) as source:
        await source.read(0, range(10))
    assert memory.row(9) == content(9, BLOCK_BYTES)


async def _read_until_it_fails(source: Source, failures: list[TransferFailed]) -> None:
    try:
        while True:
            await source.read(0, range(1000))
    except TransferFailed as error:
        failures.append(error)
