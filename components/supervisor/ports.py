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


def free_port(host: str) -> int:
    """Return a port that is free now."""
    with _socket(host) as one:
        one.bind((host, 0))
        port: int = one.getsockname()[1]
        return port


def next_free_port(host: str, port: int, *, num_tries: int = 100) -> int:
    """Return `port`, or the first free one after it."""
    for candidate in range(port, min(port + num_tries, 65536)):
        if is_free(host, candidate):
            return candidate
    raise BadConfig(f"no free port from {port} to {port + num_tries - 1} on {host}")


def _socket(host: str) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return one
