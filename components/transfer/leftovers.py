"""I/O. What killed workers left behind among temporary files: directories with a socket that nobody serves."""

import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

AGE_S = 60.0
"""Who made a directory less long ago may be about to listen."""
MAX_SWEPT = 256
"""Directories that one start removes at most."""


def sweep(prefix: str, socket_name: str) -> int:
    """Remove directories of this user whose name begins so, and where nobody listens; return how many.

    Nothing else that lies in a directory is removed, and then the directory is not either.
    """
    count = 0
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix) or not _is_left(entry, socket_name):
                continue
            with suppress(OSError):  # another worker that starts was faster
                Path(entry.path, socket_name).unlink(missing_ok=True)
                os.rmdir(entry.path)
                count += 1
            if count == MAX_SWEPT:
                break
    return count


def _is_left(entry: "os.DirEntry[str]", socket_name: str) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or time.time() - found.st_mtime < AGE_S:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(f"{entry.path}/{socket_name}")
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:  # it listens, and is busy
        pass
    return False
