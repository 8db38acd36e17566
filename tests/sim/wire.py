"""I/O (in memory). How KV blocks get from one worker's memory into another's: piece by piece, if nothing comes between.

Only the wire is the simulation's own; leases, checks and renewals above it are those of `components.transfer`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial

import anyio

from bus.errors import TransferFailed
from bus.messages.transfer import AgentAddress
from bus.testing.timers import call_later
from components.engines.exchange import BlockMemory
from components.transfer import Transfer
from components.transfer.agent import TransferAgent
from components.transfer.checks import digest
from components.transfer.leases import Seals
from components.transfer.open import open_agent
from components.transfer.wire import OnNote
from tests.sim.loop import PROCESS
from tests.sim.weather import Weather

PIECE_BLOCKS = 4
"""Blocks that are read at once: between two pieces, anything can happen."""


class Host:
    """The one machine on which all workers run: by name, whose memory can be read."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.agents: list[tuple[str, TransferAgent]] = []
        """With their processes."""
        self._wires: dict[str, MemoryWire] = {}

    def find(self, agent: str) -> "MemoryWire":
        """Return the wire of an agent; raise `TransferFailed` when its process is gone."""
        wire = self._wires.get(agent)
        if wire is None:
            raise TransferFailed(f"{agent} is gone")
        return wire

    def lose(self, process: str) -> None:
        """A process is dead, and its memory with it."""
        for agent in [agent for agent, wire in self._wires.items() if wire.process == process]:
            self._wires.pop(agent).is_lost = True

    def deliver(self, agent: str, note: bytes) -> None:
        """Bring a note to an agent, if it is there."""
        wire = self._wires.get(agent)
        if wire is not None:
            wire.hear(note)

    @asynccontextmanager
    async def open_transfer(self, memory: BlockMemory, worker: str) -> AsyncIterator[Transfer]:
        """Offer and read blocks for the process that runs: what `components.transfer.open_transfer` does."""
        async with open_agent(partial(self._open_wire, memory, worker)) as agent:
            assert isinstance(agent, TransferAgent)
            entry = (PROCESS.get(), agent)
            self.agents.append(entry)
            try:
                yield agent
            finally:
                self.agents.remove(entry)

    def _open_wire(
        self, memory: BlockMemory, worker: str, seals: Seals, on_note: OnNote
    ) -> AbstractAsyncContextManager["MemoryWire"]:
        return self._keep(MemoryWire(self, f"{worker}.{secrets.token_hex(8)}", memory, seals, on_note))

    @asynccontextmanager
    async def _keep(self, wire: "MemoryWire") -> AsyncIterator["MemoryWire"]:
        self._wires[wire.address.agent] = wire
        try:
            yield wire
        finally:
            wire.is_lost = True
            self._wires.pop(wire.address.agent, None)


class MemoryWire:
    """Implements `components.transfer.wire.Wire`. As with real memory, that of a frozen process can be read."""

    def __init__(self, host: Host, agent: str, memory: BlockMemory, seals: Seals, on_note: OnNote) -> None:
        self.process = PROCESS.get()
        self.memory = memory
        self.seals = seals
        self.is_lost = False
        self._host = host
        self._on_note = on_note
        self._context = copy_context()
        # Addresses in memory differ from run to run, so nobody is told them; nobody here needs them.
        self.address = AgentAddress(
            agent=agent,
            transport="loopback",
            fingerprint=memory.fingerprint,
            block_bytes=memory.block_bytes,
            num_blocks=memory.num_blocks,
            endpoint=agent.encode(),
            endpoint_digest=digest(agent.encode()),
        )

    async def connect(self, peer: AgentAddress) -> None:
        """See that the peer is there."""
        await anyio.sleep(self._host.weather.read_s(self.process))
        self._host.find(peer.agent)

    async def read(self, peer: AgentAddress, theirs: Sequence[int], ours: Sequence[int], slot: int) -> int:
        """Copy blocks, piece by piece, then the seal."""
        weather = self._host.weather
        for first in range(0, len(ours), PIECE_BLOCKS):
            await anyio.sleep(weather.read_s(self.process))
            if weather.breaks_read(self.process):
                raise TransferFailed(f"{peer.agent} was lost while its KV blocks were read")
            source = self._host.find(peer.agent)
            piece = slice(first, first + PIECE_BLOCKS)
            for their, our in zip(theirs[piece], ours[piece], strict=True):
                self.memory.row(our)[:] = source.memory.row(their)
        return self._host.find(peer.agent).seals[slot]

    def notify(self, peer: AgentAddress, note: bytes) -> None:
        """Send a note, which may get lost; what is frozen hears of it later."""
        if self.is_lost:
            return
        for delay_s in self._host.weather.delays(peer.agent, "note"):
            call_later(delay_s, self._host.deliver, peer.agent, note)

    def watch(self, is_busy: bool) -> None:
        """Poll nothing."""

    def hear(self, note: bytes) -> None:
        """Hand a note to the process, in its own time."""
        asyncio.get_running_loop().call_soon(self._take, note, context=self._context.copy())

    def _take(self, note: bytes) -> None:
        if not self.is_lost:
            self._on_note(note)
