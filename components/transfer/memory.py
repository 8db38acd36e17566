"""I/O. Read the memory of another process of this user and host: `process_vm_readv` of Linux, many pieces by one call.

UCX reads so, too, but one descriptor by one call, which costs 64 KiB blocks a quarter of the speed.
"""

import ctypes
import errno
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import anyio
import structlog
from anyio import from_thread, to_thread

from bus.errors import TransferFailed
from bus.messages.transfer import AgentAddress
from components.engines.exchange import BlockMemory
from components.transfer.leases import SEAL_BYTES
from components.transfer.wire import BATCH_BYTES, MAX_READS

MAX_PIECES = 1024
"""IOV_MAX."""
INLINE_BYTES = 256 * 2**10
"""So much is copied sooner than a thread could begin."""

log = structlog.get_logger()


class Neighbours:
    """Reads blocks of workers on this host into ours; several reads may be under way."""

    def __init__(self, memory: BlockMemory) -> None:
        self._memory = memory
        self._readers = anyio.CapacityLimiter(MAX_READS)
        self._may_read = sys.platform == "linux" and memory.buffer is not None

    def reach(self, peer: AgentAddress) -> bool:
        """Say whether a peer that tells where it is can be read."""
        return self._may_read and peer.device == "cpu" and peer.host != "" and peer.host == this_host()

    async def read(
        self, pid: int, peer: AgentAddress, theirs: Sequence[int], ours: Sequence[int], slot: int
    ) -> int | None:
        """Copy blocks of a peer, then return its seal in `slot`; None where this user may not do that.

        A process that took the number of a dead one shows no seal of a lease. A cancel waits for the part that is being
        copied: nothing arrives after it. Raises `TransferFailed`.
        """
        if not self._may_read:
            return None
        size = self._memory.block_bytes
        source, target = _pieces(peer.pool_address, theirs, size), _pieces(self._memory.address, ours, size)
        copies = _Copies(pid, size, source, target, peer.seals_address + slot * SEAL_BYTES)
        try:
            if len(ours) * size <= INLINE_BYTES:
                return copies.run()
            return await to_thread.run_sync(copies.run, from_thread.check_cancelled, limiter=self._readers)
        except PermissionError:
            self._may_read = False
            log.info("neighbours.unreadable", reason="this user may not read the memory of its processes")
            return None
        except OSError as error:
            raise TransferFailed(f"worker {peer.agent} was lost while its KV blocks were read: {error}") from error


@cache
def this_host() -> str:
    """Return what processes have in common that know each other by the same numbers; empty: not on Linux."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class _Copies:
    """Pieces of another process that are copied to as many of ours, and a seal of its."""

    def __init__(self, pid: int, size: int, source: "array[int]", target: "array[int]", seal_address: int) -> None:
        self._pid = pid
        self._size = size
        self._source = source
        self._target = target
        self._seal_address = seal_address

    def run(self, check: Callable[[], None] = lambda: None) -> int:
        """Copy all, then return the seal; `check` is called between parts and raises to stop.

        Blocks, most of it without the interpreter's lock. Raises `PermissionError` where this user may not do that, and
        `OSError` when the process is gone or has no such memory.
        """
        step = 2 * max(1, min(MAX_PIECES, BATCH_BYTES // self._size))
        for first in range(0, len(self._source), step):
            check()
            self._copy(self._source[first : first + step], self._target[first : first + step], self._size)
        seal = array("Q", [0])
        place = seal.buffer_info()[0]
        self._copy(_pieces(self._seal_address, [0], SEAL_BYTES), _pieces(place, [0], SEAL_BYTES), SEAL_BYTES)
        return seal[0]

    def _copy(self, source: "array[int]", target: "array[int]", size: int) -> None:
        count = len(source) // 2
        read = _libc.process_vm_readv(
            self._pid, target.buffer_info()[0], count, source.buffer_info()[0], count, ctypes.c_ulong(0)
        )
        if read != count * size:
            code = ctypes.get_errno() if read < 0 else errno.EFAULT
            code = errno.EPERM if code == errno.ENOSYS else code
            raise OSError(code, os.strerror(code))


def _pieces(start: int, numbers: Sequence[int], size: int) -> "array[int]":
    """Return the `struct iovec`s of pieces that lie side by side, by number."""
    pieces = array("Q", [size]) * (2 * len(numbers))
    pieces[::2] = array("Q", [start + number * size for number in numbers])
    return pieces


_libc = ctypes.CDLL(None, use_errno=True)
if sys.platform == "linux":
    _libc.process_vm_readv.restype = ctypes.c_ssize_t
    _libc.process_vm_readv.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]
