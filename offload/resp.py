"""I/O. One blocking connection to a Redis server: values go from and to the caller's memory without a copy between.

Values of 64 KiB by unix socket take 12 to 18 % of the CPU that redis-py with hiredis takes to set them, and 60 to 70 %
to get them (tests/bench/offload_remote.py): it joins what it sends, and copies what it gets.
"""

import socket
import ssl
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from bus.errors import BadConfig
from offload.store import TierUnavailable

MAX_REPLY_BYTES = 64 * 2**20
"""Of one string that nobody gave room for."""
MAX_ARRAY = 2**16
MAX_DEPTH = 4
_MISSING = b"$-1\r\n"

Reply = int | bytes | None | list["Reply"]


class Address(msgspec.Struct, frozen=True):
    """Where a server is: a host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 6379
    path: str = ""
    user: str = ""
    password: str = ""
    db: int = 0
    is_tls: bool = False

    @property
    def location(self) -> str:
        """The address without user and password."""
        return f"unix://{self.path}?db={self.db}" if self.path else f"redis://{self.host}:{self.port}/{self.db}"


def parse_url(url: str) -> Address:
    """Read `redis://[user:password@]host[:port][/db]`, `rediss://...` or `unix:///path[?db=1]`; raise `BadConfig`."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("it begins with redis://, rediss:// or unix://")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme == "unix":
            db = int(parse_qs(parts.query).get("db", ["0"])[0])
            if not parts.path:
                raise ValueError("the path of the socket is missing")
            return Address(path=unquote(parts.path), user=user, password=password, db=db)
        db = int(parts.path.strip("/") or "0")
        host, port, is_tls = parts.hostname or "127.0.0.1", parts.port or 6379, parts.scheme == "rediss"
        return Address(host=host, port=port, user=user, password=password, db=db, is_tls=is_tls)
    except ValueError as error:
        # The URL may hold a password.
        raise BadConfig(f"offload.redis.url is no address of a Redis server: {error}") from error


class Connection:
    """Used by one thread at a time; only `abort` may come from another. Any `TierUnavailable` ends its use."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        """Connect and log in within `timeout_s`, which also bounds each later wait for the server."""
        self._pending = bytearray()
        try:
            self._socket = _connect(address, timeout_s)
        except (OSError, ssl.SSLError) as error:
            raise TierUnavailable(f"{address.location}: {error}") from error
        self._location = address.location
        self._timeout_s = timeout_s
        if not isinstance(self._socket, ssl.SSLSocket):
            # The kernel keeps the time: a timeout of Python's would make reads return with a part of what is asked.
            self._socket.settimeout(None)
            seconds = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        try:
            if address.password:
                login = (address.user, address.password) if address.user else (address.password,)
                self.call(b"AUTH", *(word.encode() for word in login))
            if address.db:
                self.call(b"SELECT", b"%d" % address.db)
        except TierUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """Close; closing twice is no error."""
        self._socket.close()

    def abort(self) -> None:
        """Let whatever waits for the server fail now."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def call(self, *words: bytes) -> Reply:
        """Send one command and return its reply; an error of the server's raises."""
        return self.call_all([words])[0]

    def call_all(self, commands: Sequence[Sequence[bytes]]) -> list[Reply]:
        """Send commands at once and return their replies."""
        self._send(b"".join([_command(words) for words in commands]))
        deadline = time.monotonic() + self._timeout_s
        return [self._read_reply(deadline, 0) for _ in commands]

    def set_all(self, keys: Sequence[bytes], values: Sequence[memoryview], keep_ms: int) -> list[bool]:
        """Set values that expire after `keep_ms`; False where the server has no room."""
        tail = b"\r\n$2\r\nPX\r\n" + _bulk(b"%d" % keep_ms)
        for key, value in zip(keys, values, strict=True):
            self._send(b"*5\r\n$3\r\nSET\r\n" + _bulk(key) + b"$%d\r\n" % len(value), value, tail)
        deadline = time.monotonic() + self._timeout_s
        return [self._read_done(deadline) for _ in keys]

    def get_all(self, keys: Sequence[bytes], views: Sequence[memoryview]) -> list[bool]:
        """Fill the views with the values of these keys; False where there is none or one of another length."""
        if not keys:
            return []
        self._send(_command([b"MGET", *keys]))
        deadline = time.monotonic() + self._timeout_s
        line = self._read_line()
        if line != b"*%d" % len(keys):
            raise self._failure(line)
        heads = [b"$%d\r\n" % len(view) for view in views]
        # With each value comes what is sure to follow it: the beginning of the next one.
        aheads = [min(2 * len(_MISSING), len(head)) for head in heads[1:-1]]
        aheads += [min(len(_MISSING), len(heads[-1])), 0][-len(views) :]
        return [self._read_into(*each, deadline) for each in zip(views, heads, aheads, strict=True)]

    def _read_into(self, view: memoryview, head: bytes, ahead: int, deadline: float) -> bool:
        """Fill a view with the value that begins with `head`; `ahead` bytes are there behind it in any case."""
        self._check_time(deadline)
        self._await(min(len(_MISSING), len(head)))
        if self._pending.startswith(_MISSING):
            del self._pending[: len(_MISSING)]
            return False
        if not head.startswith(self._pending[: len(head)]):
            self._read_reply(deadline, 0)  # of another length
            return False
        self._await(len(head))
        if not self._pending.startswith(head):
            self._read_reply(deadline, 0)
            return False
        del self._pending[: len(head)]
        end = bytearray(2 + ahead)
        self._fill(view, end)
        self._pending[:0] = end[2:]
        return True

    def _read_done(self, deadline: float) -> bool:
        self._check_time(deadline)
        line = self._read_line()
        if line.startswith(b"-OOM"):
            return False
        if line != b"+OK":
            raise self._failure(line)
        return True

    def _read_reply(self, deadline: float, depth: int) -> Reply:
        self._check_time(deadline)
        line = self._read_line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise self._failure(line)
        try:
            number = int(rest)
        except ValueError:
            raise self._failure(line) from None
        if kind == b":":
            return number
        if number == -1 and kind in (b"$", b"*"):
            return None
        if not 0 <= number <= (MAX_ARRAY if kind == b"*" else MAX_REPLY_BYTES) or depth > MAX_DEPTH:
            raise self._failure(line)
        if kind == b"$":
            value = bytearray(number + 2)
            self._fill(value)
            return bytes(value[:-2])
        if kind == b"*":
            return [self._read_reply(deadline, depth + 1) for _ in range(number)]
        raise self._failure(line)

    def _read_line(self) -> bytes:
        """Return the bytes before the next line break; what comes behind it stays for the next read."""
        while (end := self._pending.find(b"\r\n")) < 0:
            if len(self._pending) > 65_536:
                raise self._failure(bytes(self._pending))
            self._pending += self._receive()
        line = bytes(self._pending[:end])
        del self._pending[: end + 2]
        return line

    def _receive(self) -> bytes:
        try:
            # Little at a time: what follows may be a value that goes to the caller's memory.
            data = self._socket.recv(512)
        except (OSError, ssl.SSLError) as error:
            raise self._broken(error) from error
        if not data:
            raise TierUnavailable(f"{self._location} closed the connection")
        return data

    def _await(self, count: int) -> None:
        """Have at least so many bytes at hand, and no more than that are waited for."""
        if len(self._pending) < count:
            more = bytearray(count - len(self._pending))
            self._fill_from_socket([memoryview(more)])
            self._pending += more

    def _fill(self, *views: bytearray | memoryview) -> None:
        """Read exactly what fits into these views."""
        left: list[memoryview] = []
        for view in views:
            taken = min(len(view), len(self._pending))
            if taken:
                view[:taken] = self._pending[:taken]
                del self._pending[:taken]
            if taken < len(view):
                left.append(memoryview(view)[taken:])
        self._fill_from_socket(left)

    def _fill_from_socket(self, left: list[memoryview]) -> None:
        try:
            while left:
                if isinstance(self._socket, ssl.SSLSocket):
                    count = self._socket.recv_into(left[0])
                else:
                    count = self._socket.recvmsg_into(left, 0, socket.MSG_WAITALL)[0]
                if not count:
                    raise TierUnavailable(f"{self._location} closed the connection")
                left = _behind(left, count)
        except (OSError, ssl.SSLError) as error:
            raise self._broken(error) from error

    def _send(self, *parts: bytes | memoryview) -> None:
        left = [memoryview(part) for part in parts]
        try:
            while left:
                if isinstance(self._socket, ssl.SSLSocket):
                    count = self._socket.send(left[0])
                else:
                    count = self._socket.sendmsg(left)
                left = _behind(left, count)
        except (OSError, ssl.SSLError) as error:
            raise self._broken(error) from error

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise TierUnavailable(f"{self._location} took longer than {self._timeout_s:g} s")

    def _broken(self, error: OSError) -> TierUnavailable:
        if isinstance(error, BlockingIOError | TimeoutError):
            return TierUnavailable(f"{self._location} was silent for {self._timeout_s:g} s")
        return TierUnavailable(f"{self._location}: {error}")

    def _failure(self, line: bytes) -> TierUnavailable:
        return TierUnavailable(f"{self._location} answered {line[:200].decode('utf-8', 'replace')!r}")


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if address.path:
        local = socket.socket(socket.AF_UNIX)
        try:
            local.settimeout(timeout_s)
            local.connect(address.path)
        except OSError:
            local.close()
            raise
        return local
    remote = socket.create_connection((address.host, address.port), timeout_s)
    remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ssl.create_default_context().wrap_socket(remote, server_hostname=address.host) if address.is_tls else remote


def _command(words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([_bulk(word) for word in words])


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _behind(views: list[memoryview], count: int) -> list[memoryview]:
    """Return what of these views comes after the first `count` bytes."""
    for position, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[position + 1 :]]
        count -= len(view)
    return []
