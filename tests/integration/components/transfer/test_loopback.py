"""What only loopback has: sockets that anybody of this user can connect to."""

import socket

import anyio
import pytest

from bus.codec import encode
from bus.metrics import MALFORMED_MESSAGES
from components.engines.exchange import BlockMemory
from components.transfer import Ending, open_transfer
from components.transfer.loopback import MAX_FRAME_BYTES, _Note, _Read
from components.transfer.wire import LeaseNote

pytestmark = pytest.mark.anyio


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


async def test_hostile_frames_are_cut_off_and_harm_nothing(memory: BlockMemory) -> None:
    endings: list[Ending] = []
    async with open_transfer(memory, "w-test", transport="loopback") as ours:
        offer = ours.offer([1, 2], endings.append)
        path = offer.source.endpoint.decode()
        malformed = MALFORMED_MESSAGES.labels("transfer")._value.get()
        for hostile in (
            b"\xff\xff\xff\xff",
            (MAX_FRAME_BYTES + 1).to_bytes(4, "little"),
            _framed(b""),
            _framed(b"\xc1" * 100),
            _framed(b"\x91" * 100_000),
            _framed(encode(_Read(memory.num_blocks.to_bytes(4, "little"), 0))),
            _framed(encode(_Read(b"\0\0\0", 0))),
            _framed(encode(_Read(b"", 1024))),
            _framed(encode(_Read(b"", -1))),
            _framed(encode(_Note(b"\xff" * 1000))),
            _framed(encode(_Note(encode(LeaseNote(offer.lease ^ 1, "release"))))),
        ):
            async with await anyio.connect_unix(path) as stream:
                await stream.send(hostile)
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)), anyio.fail_after(30):
                    await stream.receive()
        assert MALFORMED_MESSAGES.labels("transfer")._value.get() - malformed == 10
        async with await anyio.connect_unix(path) as stream:  # half a frame, and then nothing: cut off after a second
            await stream.send(b"\x10")
            with anyio.fail_after(30), pytest.raises(anyio.EndOfStream):
                await stream.receive()
        assert endings == []
        async with ours.open(offer) as source:
            await source.read(0, [3, 4])
        assert memory.row(3) == memory.row(1)
    assert len(endings) == 1


def is_cut_off(connection: socket.socket) -> bool:
    """Say whether the other end has closed it, and all that came was read."""
    connection.setblocking(False)
    try:
        while connection.recv(2**20):
            pass
    except BlockingIOError:
        return False
    return True


async def test_a_reader_that_does_not_read_holds_up_nobody(
    memory: BlockMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.transfer.loopback.allowed_s", lambda _: 60.0)
    async with open_transfer(memory, "w-test", transport="loopback") as ours:
        offer = ours.offer(range(1000), lambda _: None)
        with socket.socket(socket.AF_UNIX) as lazy:
            lazy.connect(offer.source.endpoint.decode())
            lazy.sendall(_framed(encode(_Read(offer.blocks, offer.slot))))
            async with ours.open(offer) as source:
                with anyio.fail_after(30):
                    await source.read(0, range(100))
            assert not is_cut_off(lazy), "it was still being served"
