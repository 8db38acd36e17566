"""I/O. A worker's memory in a process of its own that offers its blocks, driven by lines on standard input.

    python peer.py TRANSPORT NUM_BLOCKS BLOCK_BYTES LEASE_S FINGERPRINT

TRANSPORT is `loopback`, `nixl`, or `network`: NIXL, as between hosts.
Block i is filled with the bytes that `content(i)` tells. A line in is JSON, `["offer", first, count]`, `["withdraw",
lease]`, `["fill", first, count]` (with what they hold at first), `["scribble", first, count]` (with anything else),
`["read", offer]` and `["hold", offer]` (into blocks from 0 on, and go or stay), `["digest"]`, `["ping"]` or `["cpu"]`.
A line out is JSON, too: `["offer", hex]`, `["ended", lease, why]`, `["done"]`, `["read", error or null]`,
`["digest", number]`, `["ping"]`, `["cpu", seconds]`. The process ends with its input.
"""

import json
import sys
import time
import zlib
from typing import Any

import anyio
import numpy as np
import structlog
from anyio import to_thread

from bus.codec import codec, encode
from bus.errors import BuswayError
from bus.messages.transfer import BlockOffer
from components.engines.exchange import BlockMemory
from components.transfer import Transfer, nixl, open_transfer


def make_memory(num_blocks: int, block_bytes: int, fingerprint: str = "f") -> BlockMemory:
    """Return zeros, from where the torch engine has them: numpy asks for huge pages, which are read much faster."""
    pool = np.zeros(num_blocks * block_bytes, dtype=np.uint8)
    return BlockMemory(
        address=pool.ctypes.data,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        device="cpu",
        fingerprint=fingerprint,
        buffer=pool.data,
    )


def content(block: int, block_bytes: int) -> bytes:
    """Return what block number `block` of a peer holds: all bytes of it tell its number."""
    return ((block + 1).to_bytes(4, "little") * (block_bytes // 4 + 1))[:block_bytes]


def say(*words: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


class Peer:
    """What the lines do."""

    def __init__(self, memory: BlockMemory, transfer: Transfer) -> None:
        self._memory = memory
        self._transfer = transfer

    async def take(self, word: str, *rest: Any) -> None:
        """Do what one line says."""
        if word == "offer":
            first, count = rest
            lease: list[int] = []
            offer = self._transfer.offer(range(first, first + count), lambda why: say("ended", lease[0], why))
            lease.append(offer.lease)
            say("offer", encode(offer).hex())
        elif word == "withdraw":
            self._transfer.withdraw(rest[0])
        elif word in ("fill", "scribble"):
            first, count = rest
            for block in range(first, first + count):
                self._memory.row(block)[:] = content(block if word == "fill" else 2**31, self._memory.block_bytes)
            say("done")
        elif word in ("read", "hold"):
            say("read", await self._read(codec(BlockOffer).decode(bytes.fromhex(rest[0])), is_held=word == "hold"))
        elif word == "digest":
            assert self._memory.buffer is not None
            say("digest", zlib.crc32(self._memory.buffer))
        elif word == "ping":
            say("ping")
        elif word == "cpu":
            say("cpu", time.process_time())

    async def _read(self, offer: BlockOffer, *, is_held: bool) -> str | None:
        try:
            async with self._transfer.open(offer) as source:
                await source.read(0, range(len(offer.blocks) // 4))
                if is_held:
                    say("held")
                    await anyio.sleep_forever()
        except BuswayError as error:
            return error.code
        return None


async def main() -> None:
    """Serve until standard input ends."""
    transport, num_blocks, block_bytes, lease_s, fingerprint = sys.argv[1:6]
    memory = make_memory(int(num_blocks), int(block_bytes), fingerprint)
    for block in range(memory.num_blocks):
        memory.row(block)[:] = content(block, memory.block_bytes)
    if transport == "network":
        nixl.this_host = str
        transport = "nixl"
    async with open_transfer(memory, "w-peer", transport=transport, lease_s=float(lease_s)) as transfer:  # type: ignore[arg-type]
        say("ready")
        peer = Peer(memory, transfer)
        async with anyio.create_task_group() as tasks:
            while line := await to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                tasks.start_soon(peer.take, *json.loads(line))
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    anyio.run(main, backend_options={"use_uvloop": True})
