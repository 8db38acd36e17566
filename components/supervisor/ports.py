"""I/O. Free ports."""

import errno
import socket

from bus.errors import BadConfig


def is_free(host: str, port: int) -> bool:
    """Say whether a server can listen there; raise `BadConfig` when the address itself is impossible."""
    with _socket(host) as one:
        try:
            one.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise BadConfig(f"cannot listen on {host}: {error.strerror}") from error
        return True


def _socket(host: str) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return one
