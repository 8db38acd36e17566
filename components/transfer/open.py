"""I/O. A worker's side of the transfer, made over NIXL where that is installed and over loopback elsewhere."""

import ctypes
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal, TypeAlias

import anyio
import structlog

from bus.errors import BadConfig
from components.engines.exchange import BlockMemory
from components.transfer.agent import TransferAgent, take_note
from components.transfer.contract import Transfer
from components.transfer.leases import NUM_SLOTS, Leases
from components.transfer.loopback import open_loopback
from components.transfer.memory import Neighbours
from components.transfer.nixl import NixlAgent, Region, find_nixl
from components.transfer.nixl_wire import open_nixl
from components.transfer.wire import OnNote, Wire

LEASE_S = 10.0
"""How long blocks are kept for a reader of whom nothing is heard."""

Transport = Literal["auto", "nixl", "loopback"]
TransferOpener = Callable[[BlockMemory, str], AbstractAsyncContextManager[Transfer]]
"""Opens the side of a worker, by its name, over some memory."""
SealWords: TypeAlias = "ctypes.Array[ctypes.c_uint64]"
WireOpener = Callable[["SealWords", OnNote], AbstractAsyncContextManager[Wire]]
"""Opens a wire over the seals, which are written elsewhere; it is told what to call with peers' notes."""

log = structlog.get_logger()


@asynccontextmanager
async def open_agent(open_wire: WireOpener, *, lease_s: float = LEASE_S) -> AsyncIterator[Transfer]:
    """Offer and read blocks over a wire while the context is open; at its end all leases do."""
    seals = (ctypes.c_uint64 * NUM_SLOTS)()
    leases = Leases(seals, lease_s=lease_s, draw=lambda: secrets.randbits(64))
    async with open_wire(seals, partial(take_note, leases)) as wire:
        agent = TransferAgent(wire, leases, lease_s=lease_s)
        log.info("transfer.opened", transport=wire.address.transport, agent=wire.address.agent)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agent.run)
            try:
                yield agent
            except Exception as error:
                # Kept, not raised: a task group would wrap it, and callers look for its class.
                failure = error
            finally:
                agent.close()
                tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def open_transfer(
    memory: BlockMemory, worker: str, *, transport: Transport = "auto", lease_s: float = LEASE_S
) -> AbstractAsyncContextManager[Transfer]:
    """Offer and read blocks of an engine's memory while the context is open; at its end all leases do.

    `auto` is NIXL where it is installed and works, else loopback, which reaches other processes of this host and user.
    With NIXL it takes a second or two to open. Raises `BadConfig` when the transport cannot be had.
    """
    return open_agent(partial(_open_wire, memory, worker, transport), lease_s=lease_s)


@asynccontextmanager
async def _open_wire(
    memory: BlockMemory, worker: str, transport: Transport, seals: SealWords, on_note: OnNote
) -> AsyncIterator[Wire]:
    async with AsyncExitStack() as stack:
        wire: Wire | None = None
        if transport != "loopback":
            try:
                wire = await stack.enter_async_context(_open_nixl(memory, worker, seals, on_note))
            except BadConfig as error:
                if transport == "nixl" or memory.buffer is None:
                    raise
                log.info("nixl.unused", reason=str(error))
        if wire is None:
            name = f"{worker}.{secrets.token_hex(8)}"
            loopback = open_loopback(memory, name, seals, ctypes.addressof(seals), on_note)
            wire = await stack.enter_async_context(loopback)
        yield wire


def _open_nixl(
    memory: BlockMemory, worker: str, seals: SealWords, on_note: OnNote
) -> AbstractAsyncContextManager[Wire]:
    wheel = find_nixl(memory.device)
    if wheel is None:
        raise BadConfig(f"NIXL for KV blocks on {memory.device} is not installed: pip install 'busway[nixl]'")

    def make_agent(name: str, scratch: Region) -> NixlAgent:
        return NixlAgent(name, wheel, memory, ctypes.addressof(seals), scratch)

    return open_nixl(make_agent, worker, Neighbours(memory), on_note)
