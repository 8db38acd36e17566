"""I/O. Read the memory of another process of this user: `process_vm_readv` of Linux, many pieces by one call.

UCX reads so, too, but one descriptor by one call, which costs 64 KiB blocks a third of the speed.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from array import array
from collections.abc import Sequence

MAX_PIECES = 1024
"""IOV_MAX."""

_PEERCRED = struct.Struct("iII")


def peer_pid(connection: socket.socket) -> int | None:
    """Return the process that listens at the other end of a Unix socket, as the kernel knows it; None: not on Linux."""
    if sys.platform != "linux":
        return None
    pid, _, _ = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(pid) or None


def read_memory(pid: int, theirs: Sequence[int], ours: Sequence[int], size: int) -> None:
    """Copy `size` bytes from each address `theirs[i]` of a process to our `ours[i]`, at most `MAX_PIECES` of them.

    Blocks, without the interpreter's lock. Raises `PermissionError` where this user may not do that, and `OSError` when
    the process is gone or has no such memory.
    """
    local, remote = _pieces(ours, size), _pieces(theirs, size)
    read = _libc.process_vm_readv(
        pid, local.buffer_info()[0], len(ours), remote.buffer_info()[0], len(theirs), ctypes.c_ulong(0)
    )
    if read != size * len(ours):
        code = ctypes.get_errno() if read < 0 else errno.EFAULT
        code = errno.EPERM if code == errno.ENOSYS else code
        raise OSError(code, os.strerror(code))


def _pieces(addresses: Sequence[int], size: int) -> "array[int]":
    """Return the `struct iovec`s of pieces of equal size."""
    pieces = array("Q", [size]) * (2 * len(addresses))
    pieces[::2] = array("Q", addresses)
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
