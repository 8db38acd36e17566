"""Pure. What a server sends, cut into messages and control lines.

nats-py has a parser too: it takes subjects apart at vertical tabs and form feeds, which the server lets through, so
that one published message ends the connections of all who listen.
"""

from collections.abc import Callable

from bus.errors import Malformed

MAX_LINE_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 65 * 2**20
"""nats-server takes no larger payload than 64 MiB, whatever it is told."""

OnMessage = Callable[[int, bytes, bytes, bytes, bytes], None]
"""Gets subscription id, subject, reply (or empty), payload, header block (or empty)."""
OnControl = Callable[[bytes], None]
"""Gets a line that is no message: `PING`, `PONG`, `+OK`, `-ERR '...'`, `INFO {...}`."""


class Parser:
    """Takes bytes as they come; after `Malformed` the stream of bytes has no meaning any more."""

    def __init__(self, on_message: OnMessage, on_control: OnControl) -> None:
        self._on_message = on_message
        self._on_control = on_control
        self._rest = bytearray()
        self._needed = 0
        """Bytes that `_rest` must hold before anything can be done with it."""

    def feed(self, data: bytes) -> None:
        """Call back for everything that is complete now; raise `Malformed` for what is no protocol."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        used = self._take(data)
        if used < len(data):
            self._rest += data[used:]

    def _take(self, data: bytes) -> int:
        """Call back for whole pieces of `data`; return how many bytes they were."""
        start, end = 0, len(data)
        while start < end:
            line_end = data.find(b"\r\n", start)
            if line_end < 0:
                if end - start > MAX_LINE_BYTES:
                    raise Malformed(f"a line without end: {data[start : start + 40]!r}")
                self._needed = 0
                break
            line = data[start:line_end]
            body = line_end + 2
            is_plain = line.startswith(b"MSG ")
            if not is_plain and not line.startswith(b"HMSG "):
                self._on_control(line)
                start = body
                continue
            sid, subject, reply, header_bytes, num_bytes = _parse_plain(line) if is_plain else _parse_headed(line)
            next_start = body + num_bytes + 2
            if next_start > end:
                self._needed = next_start - start
                break
            if data[next_start - 2 : next_start] != b"\r\n":
                raise Malformed(f"a message longer than it says: {line[:80]!r}")
            split = body + header_bytes
            self._on_message(sid, subject, reply, data[split : next_start - 2], data[body:split])
            start = next_start
        return start


def _parse_plain(line: bytes) -> tuple[int, bytes, bytes, int, int]:
    arguments = line.split(b" ")
    try:
        if len(arguments) == 4:
            _, subject, sid, size = arguments
            return int(sid), subject, b"", 0, _check_size(int(size))
        _, subject, sid, reply, size = arguments
        return int(sid), subject, reply, 0, _check_size(int(size))
    except ValueError as error:
        raise Malformed(f"no message: {line[:80]!r}") from error


def _parse_headed(line: bytes) -> tuple[int, bytes, bytes, int, int]:
    arguments = line.split(b" ")
    reply = b""
    try:
        if len(arguments) == 5:
            _, subject, sid, header_size, size = arguments
        else:
            _, subject, sid, reply, header_size, size = arguments
        header_bytes, num_bytes = int(header_size), _check_size(int(size))
        number = int(sid)
    except ValueError as error:
        raise Malformed(f"no message: {line[:80]!r}") from error
    if not 0 <= header_bytes <= num_bytes:
        raise Malformed(f"no message: {line[:80]!r}")
    return number, subject, reply, header_bytes, num_bytes


def _check_size(num_bytes: int) -> int:
    if not 0 <= num_bytes <= MAX_MESSAGE_BYTES:
        raise ValueError("size out of bounds")
    return num_bytes
