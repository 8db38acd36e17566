"""Memory of another process, here of this one: what is copied, who is a neighbour, and what is an error."""

import ctypes
import os
import sys

import msgspec
import numpy as np
import pytest

from bus.errors import TransferFailed
from bus.messages.transfer import AgentAddress
from components.engines.exchange import BlockMemory
from components.transfer.memory import MAX_PIECES, Neighbours, this_host

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do that")]
SIZE, COUNT = 64, MAX_PIECES + 10
NOBODY = 2**30
"""No process has that number: Linux counts to 2**22."""


class Stage:
    """Two memories, and seals."""

    def __init__(self) -> None:
        self.theirs = np.arange(SIZE * COUNT, dtype=np.uint32).view(np.uint8)[: SIZE * COUNT].copy()
        self.ours = np.zeros(SIZE * COUNT, dtype=np.uint8)
        self.seals = (ctypes.c_uint64 * 4)(1, 2, 3, 2**64 - 1)
        self.peer = AgentAddress(
            agent="w",
            transport="nixl",
            fingerprint="f",
            block_bytes=SIZE,
            num_blocks=COUNT,
            endpoint=b"",
            endpoint_digest=0,
            pool_address=self.theirs.ctypes.data,
            seals_address=ctypes.addressof(self.seals),
            host=this_host(),
            pid=os.getpid(),
        )
        memory = BlockMemory(self.ours.ctypes.data, SIZE, COUNT, "cpu", "f", self.ours.data)
        self.neighbours = Neighbours(memory)


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_rows_and_the_seal_are_read(stage: Stage) -> None:
    order = list(range(COUNT))[::-1]
    assert await stage.neighbours.read(os.getpid(), stage.peer, order, range(COUNT), 3) == 2**64 - 1
    assert (stage.ours.reshape(COUNT, SIZE) == stage.theirs.reshape(COUNT, SIZE)[order]).all()


async def test_what_is_not_there_is_lost(stage: Stage) -> None:
    with pytest.raises(TransferFailed, match="was lost"):
        await stage.neighbours.read(NOBODY, stage.peer, [0], [0], 0)
    for lie in ({"pool_address": 4096}, {"seals_address": 2**64 - 8}):
        with pytest.raises(TransferFailed, match="was lost"):
            await stage.neighbours.read(os.getpid(), msgspec.structs.replace(stage.peer, **lie), [0], [0], 0)


def test_neighbours_are_on_this_host_and_not_on_a_gpu(stage: Stage) -> None:
    assert stage.neighbours.reach(stage.peer)
    for other in ({"host": ""}, {"host": "another"}, {"device": "cuda:0"}):
        assert not stage.neighbours.reach(msgspec.structs.replace(stage.peer, **other))
