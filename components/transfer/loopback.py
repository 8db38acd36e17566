"""I/O. KV blocks between processes of one host without NIXL: from memory to memory, or else over Unix sockets.

Where the system lets a process read the memory of another one of the same user, only notes go over sockets. A
connection carries one frame, a little-endian uint32 length and then a `_Read` or a `_Note`. The answer to a `_Read` is
the bytes of the blocks and then the seal; whoever says something else is cut off.
"""

import os
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import structlog
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

from bus.codec import Codec, encode
from bus.errors import BadConfig, Malformed, TransferFailed
from bus.messages.base import Hot, pack_u32, unpack_u32
from bus.messages.transfer import AgentAddress
from bus.metrics import MALFORMED_MESSAGES
from components.engines.exchange import BlockMemory
from components.transfer.checks import allowed_s, digest
from components.transfer.leases import NUM_SLOTS, Seals
from components.transfer.leftovers import sweep
from components.transfer.memory import Neighbours, this_host
from components.transfer.wire import OnNote

MAX_FRAME_BYTES = 4 * 2**20
"""A million block numbers."""
MAX_SERVED = 64
"""Connections that are served at a time; those beyond wait until they give up."""
MAX_PEERS = 64
"""Peers whose process is known; the one that was connected to first makes room, and is read over sockets."""

_DIRECTORY, _SOCKET = "busway-kv-", "blocks"
_FRAME_S = 1.0
_PEERCRED = struct.Struct("iII")
_LOST = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)

log = structlog.get_logger()


class _Read(Hot, frozen=True, tag="read"):
    blocks: bytes
    slot: int


class _Note(Hot, frozen=True, tag="note"):
    note: bytes


_frames: Codec[_Read | _Note] = Codec(_Read | _Note)


@asynccontextmanager
async def open_loopback(
    memory: BlockMemory, agent: str, seals: Seals, seals_address: int, on_note: OnNote
) -> AsyncIterator["LoopbackWire"]:
    """Serve the blocks of `memory` on a socket in a directory of this user while the context is open.

    Raises `BadConfig` for blocks on a GPU, or when no socket can be made.
    """
    if memory.buffer is None:
        raise BadConfig(f"loopback cannot reach KV blocks on {memory.device}: set the transport to nixl")
    if num_swept := sweep(_DIRECTORY, _SOCKET):
        log.info("leftovers.removed", num_directories=num_swept)
    with tempfile.TemporaryDirectory(prefix=_DIRECTORY) as directory:
        path = f"{directory}/{_SOCKET}"
        try:
            listener = await anyio.create_unix_listener(path, mode=0o600)
        except OSError as error:
            raise BadConfig(f"no socket for KV blocks at {path}: {error}; set TMPDIR to a shorter path") from error
        address = AgentAddress(
            agent=agent,
            transport="loopback",
            fingerprint=memory.fingerprint,
            block_bytes=memory.block_bytes,
            num_blocks=memory.num_blocks,
            endpoint=path.encode(),
            endpoint_digest=digest(path.encode()),
            pool_address=memory.address,
            seals_address=seals_address,
            host=this_host(),
            pid=os.getpid(),
        )
        async with listener, anyio.create_task_group() as tasks:
            wire = LoopbackWire(address, memory, seals, on_note, tasks)
            tasks.start_soon(_accept, listener, wire, tasks)
            try:
                yield wire
            finally:
                tasks.cancel_scope.cancel()


class LoopbackWire:
    """Implements `components.transfer.wire.Wire`."""

    def __init__(
        self, address: AgentAddress, memory: BlockMemory, seals: Seals, on_note: OnNote, tasks: TaskGroup
    ) -> None:
        self._address = address
        self._memory = memory
        self._seals = seals
        self._on_note = on_note
        self._tasks = tasks
        self._served = anyio.Semaphore(MAX_SERVED)
        self._neighbours = Neighbours(memory)
        self._pids: dict[str, int] = {}

    @property
    def address(self) -> AgentAddress:
        """Where peers find this side."""
        return self._address

    async def connect(self, peer: AgentAddress) -> None:
        """See that the peer listens, and which process it is."""
        try:
            async with await anyio.connect_unix(_path(peer)) as stream:
                pid = peer_pid(stream.extra(SocketAttribute.raw_socket))
        except _LOST as error:
            raise TransferFailed(f"worker {peer.agent} cannot be reached on this host: {error}") from error
        self._pids.pop(peer.agent, None)
        if len(self._pids) >= MAX_PEERS:
            del self._pids[next(iter(self._pids))]
        if pid is not None and peer.pool_address and peer.seals_address:  # an older version does not tell them
            self._pids[peer.agent] = pid

    async def read(self, peer: AgentAddress, theirs: Sequence[int], ours: Sequence[int], slot: int) -> int:
        """Copy blocks of a peer, then return the seal that it had after it had sent the last of them."""
        pid = self._pids.get(peer.agent)
        read = None if pid is None else await self._neighbours.read(pid, peer, theirs, ours, slot)
        if read is not None:
            return read
        seal = bytearray(8)
        try:
            async with await anyio.connect_unix(_path(peer)) as stream:
                raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
                await _send_frame(stream, _Read(pack_u32(theirs), slot))
                for block in ours:
                    await _receive_into(raw, self._memory.row(block))
                await _receive_into(raw, memoryview(seal))
        except _LOST as error:
            raise TransferFailed(f"worker {peer.agent} was lost while its KV blocks were read: {error!r}") from error
        return int.from_bytes(seal, "little")

    def notify(self, peer: AgentAddress, note: bytes) -> None:
        """Send a note in a task of its own; a peer that is gone needs none."""
        self._tasks.start_soon(self._notify, peer, note)

    def watch(self, is_busy: bool) -> None:
        """Poll nothing: sockets wake us."""

    async def serve(self, stream: SocketStream) -> None:
        """Answer one connection; it is cut off after the time that its blocks may take."""
        async with stream, self._served:
            try:
                with anyio.fail_after(_FRAME_S):
                    frame = _frames.decode(memoryview(await _receive_frame(stream)))
                if isinstance(frame, _Note):
                    self._on_note(frame.note)
                else:
                    await self._send_blocks(stream, frame)
            except (TimeoutError, *_LOST):
                return
            except Malformed as error:
                MALFORMED_MESSAGES.labels("transfer").inc()
                log.warning("frame.refused", reason=str(error))

    async def _send_blocks(self, stream: SocketStream, frame: _Read) -> None:
        blocks = unpack_u32(frame.blocks)
        if any(block >= self._memory.num_blocks for block in blocks) or frame.slot not in range(NUM_SLOTS):
            raise Malformed(f"a peer asks for blocks that do not exist, or for slot {frame.slot}")
        with anyio.fail_after(allowed_s(len(blocks) * self._memory.block_bytes)):
            for block in blocks:
                await stream.send(self._memory.row(block))  # type: ignore[arg-type]
            await stream.send(self._seals[frame.slot].to_bytes(8, "little"))

    async def _notify(self, peer: AgentAddress, note: bytes) -> None:
        with anyio.move_on_after(_FRAME_S):
            try:
                async with await anyio.connect_unix(_path(peer)) as stream:
                    await _send_frame(stream, _Note(note))
            except (TransferFailed, *_LOST) as error:
                log.debug("note.lost", peer=peer.agent, reason=str(error))


def peer_pid(connection: socket.socket) -> int | None:
    """Return the process that listens at the other end of a Unix socket, as the kernel knows it; None: not on Linux."""
    if sys.platform != "linux":
        return None
    pid, _, _ = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(pid) or None


async def _accept(listener: SocketListener, wire: LoopbackWire, tasks: TaskGroup) -> None:
    """Serve whoever connects.

    Waits before it accepts: anyio's own wait for a Unix socket, cancelled in the turn of the event loop in which a peer
    connects, leaves an error of asyncio behind (`InvalidStateError`).
    """
    raw: socket.socket = listener.extra(SocketAttribute.raw_socket)
    while True:
        await anyio.wait_readable(raw)
        tasks.start_soon(wire.serve, await listener.accept())


def _path(peer: AgentAddress) -> str:
    """Return the socket of a peer; only one that a worker of the same user has made is ever connected to."""
    try:
        path = Path(peer.endpoint.decode())
        if path.name == _SOCKET and path.parent.name.startswith(_DIRECTORY) and path.stat().st_uid == os.geteuid():
            return str(path)
    except (ValueError, OSError) as error:
        raise TransferFailed(f"worker {peer.agent} is not on this host, or gone") from error
    raise TransferFailed(f"worker {peer.agent} names a socket that no worker of this user has made")


async def _send_frame(stream: SocketStream, frame: _Read | _Note) -> None:
    data = encode(frame)
    await stream.send(len(data).to_bytes(4, "little") + data)


async def _receive_frame(stream: SocketStream) -> bytearray:
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
    size = bytearray(4)
    await _receive_into(raw, memoryview(size))
    num_bytes = int.from_bytes(size, "little")
    if num_bytes > MAX_FRAME_BYTES:
        raise Malformed(f"a frame of {num_bytes} bytes")
    data = bytearray(num_bytes)
    await _receive_into(raw, memoryview(data))
    return data


async def _receive_into(raw: socket.socket, view: memoryview) -> None:
    """Fill `view`; a cancel leaves what has come there, and nothing comes after that."""
    while view:
        try:
            num_bytes = raw.recv_into(view)
        except BlockingIOError:
            await anyio.wait_readable(raw)
            continue
        if num_bytes == 0:
            raise anyio.EndOfStream
        view = view[num_bytes:]
