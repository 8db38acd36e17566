"""I/O. A connection over TLS that is used as a socket that never blocks."""

import socket
import ssl


class TlsConnection:
    """What the load generator uses of a socket; the handshake is done, and waited for, when it is made."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, host: str, timeout_s: float) -> None:
        """Connect to a server that must have a certificate for `host`; raise `OSError`."""
        plain = socket.create_connection(address, timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host)
        except OSError:
            plain.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, num_bytes: int) -> bytes:
        """Return what there is, all that was decrypted: nobody tells of that again; raise `BlockingIOError`."""
        try:
            data = self._socket.recv(num_bytes)
            while left := self._socket.pending():
                data += self._socket.recv(left)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        return data

    def send(self, data: bytes) -> int:
        """Return how much was taken; raise `BlockingIOError`."""
        try:
            return self._socket.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error

    def close(self) -> None:
        self._socket.close()
