"""I/O. KV blocks over NIXL: by one-sided reads, which cost the peer nothing where the hardware can do that.

Blocks in the memory of a neighbour, a worker on the same host, are read without it.
"""

import ctypes
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import structlog

from bus.errors import TransferFailed
from bus.messages.transfer import AgentAddress
from components.transfer.leases import SEAL_BYTES
from components.transfer.memory import Neighbours
from components.transfer.nixl import NixlAgent, Region
from components.transfer.thread import Job, JobThread, Steps
from components.transfer.wire import BATCH_BYTES, MAX_READS, OnNote

QUIESCE_S = 1.0
"""How long a read that nobody wants any more may still go on before the agent is closed to end it."""
POLL_S = 0.001
"""While peers may come. Without hardware for it, their reads over a network are served by our calls."""
IDLE_POLL_S = 0.1
LINGER_S = 1.0
"""How long after the last business it is still polled quickly: the last notes leave then."""

log = structlog.get_logger()

MakeAgent = Callable[[str, Region], NixlAgent]
"""Makes an agent with a name, and a place for the seals of peers."""


@asynccontextmanager
async def open_nixl(
    make_agent: MakeAgent, worker: str, neighbours: Neighbours, on_note: OnNote
) -> AsyncIterator["NixlWire"]:
    """Have an agent while the context is open; raise `BadConfig` when NIXL does not work here."""
    wire = NixlWire(make_agent, worker, neighbours, on_note)
    try:
        await wire.start()
        yield wire
    finally:
        with anyio.CancelScope(shield=True):
            await wire.close()


class NixlWire:
    """Implements `components.transfer.wire.Wire`. All of NIXL happens in one thread, which this class is careful about:
    methods with `Steps` and `_poll` run there, the others in the event loop.
    """

    def __init__(self, make_agent: MakeAgent, worker: str, neighbours: Neighbours, on_note: OnNote) -> None:
        self._make_agent = make_agent
        self._worker = worker
        self._neighbours = neighbours
        self._on_note = on_note
        self._scratch = (ctypes.c_uint64 * MAX_READS)()
        self._places = list(range(MAX_READS))
        self._agent: NixlAgent | None = None
        self._is_busy = False
        self._busy_until = 0.0
        self._thread = JobThread("nixl", self._poll)

    @property
    def address(self) -> AgentAddress:
        """Where peers find this side."""
        return self._open_agent.address

    async def start(self) -> None:
        """Make the agent; takes a second or more."""
        await self._thread.run(self._renew)

    async def close(self) -> None:
        """Close the agent and end the thread."""
        await self._thread.run(self._close)
        await self._thread.close()

    async def connect(self, peer: AgentAddress) -> None:
        """Prepare a peer; raise `TransferFailed` when it is not there."""
        await self._thread.run(lambda _: self._connect(peer))

    async def read(self, peer: AgentAddress, theirs: Sequence[int], ours: Sequence[int], slot: int) -> int:
        """Copy blocks of a peer, then return its seal; a cancel waits for what is under way."""
        if self._neighbours.reach(peer):
            try:
                seal = await self._neighbours.read(peer.pid, peer, theirs, ours, slot)
            except TransferFailed:
                self._thread.post(lambda _: self._forget(peer))
                raise
            if seal is not None:
                return seal
        return await self._thread.run(lambda job: self._read(job, peer, theirs, ours, slot))

    def notify(self, peer: AgentAddress, note: bytes) -> None:
        """Send a note soon."""
        self._thread.post(lambda _: self._notify(peer, note))

    def watch(self, is_busy: bool) -> None:
        """Poll quickly from now on, or slowly again."""
        if is_busy != self._is_busy:
            self._is_busy = is_busy
            self._busy_until = time.monotonic() + LINGER_S
            self._thread.wake()

    @property
    def _open_agent(self) -> NixlAgent:
        assert self._agent is not None, "the wire is started before it is used"
        return self._agent

    def _poll(self) -> float:
        if self._agent is None:
            return IDLE_POLL_S
        for note in self._agent.take_notes():
            self._thread.call_in_loop(self._on_note, note)
        return POLL_S if self._is_busy or time.monotonic() < self._busy_until else IDLE_POLL_S

    def _renew(self, _: Job[None]) -> Steps[None]:
        self._make()
        return
        yield True

    def _close(self, _: Job[None]) -> Steps[None]:
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        return
        yield True

    def _connect(self, peer: AgentAddress) -> Steps[None]:
        self._open_agent.connect(peer)
        return
        yield True

    def _forget(self, peer: AgentAddress) -> Steps[None]:
        self._open_agent.forget(peer.agent)
        return
        yield True

    def _notify(self, peer: AgentAddress, note: bytes) -> Steps[None]:
        self._open_agent.connect(peer)
        self._open_agent.notify(peer.agent, note)
        return
        yield True

    def _read(
        self, job: Job[int], peer: AgentAddress, theirs: Sequence[int], ours: Sequence[int], slot: int
    ) -> Steps[int]:
        agent, name = self._open_agent, peer.agent
        place = self._places.pop()
        num_blocks = max(1, BATCH_BYTES // peer.block_bytes)
        try:
            for start in range(0, len(ours), num_blocks):
                agent.connect(peer)
                batch = slice(start, start + num_blocks)
                yield from self._finish(job, name, agent.pull_blocks(name, theirs[batch], ours[batch]))
                yield True
            agent.connect(peer)
            self._scratch[place] = 0
            yield from self._finish(job, name, agent.pull_seal(name, slot, place))
            return int(self._scratch[place])
        except TransferFailed:
            agent.forget(name)
            raise
        finally:
            self._places.append(place)

    def _finish(self, job: Job[int], name: str, handle: Any) -> Steps[None]:
        """Wait until a read has ended, also one that was stopped: its bytes may still arrive."""
        agent = self._open_agent
        stopped_at: float | None = None
        try:
            while not agent.is_done(name, handle):
                if job.is_stopped:
                    now = time.monotonic()
                    stopped_at = stopped_at or now
                    if now - stopped_at > QUIESCE_S:
                        agent.release(handle)
                        self._start_again(job, name)
                        break
                yield False
        finally:
            agent.release(handle)
        if job.is_stopped:
            raise TransferFailed(f"reading from worker {name} was stopped")

    def _start_again(self, job: Job[int], name: str) -> None:
        """Make the agent anew: nothing less ends a read whose peer has neither answered nor died.

        (Giving up the handle or the peer was seen to leave late bytes arriving.) Our offers are lost by that: readers
        find nobody under the old name, and do without.
        """
        log.warning("nixl.restarted", peer=name, reason="a read did not end")
        self._thread.interrupt(job, TransferFailed("the agent was started again"))
        self._open_agent.close()
        self._make()

    def _make(self) -> None:
        scratch = Region(ctypes.addressof(self._scratch), SEAL_BYTES, MAX_READS)
        self._agent = self._make_agent(f"{self._worker}.{secrets.token_hex(8)}", scratch)
