"""I/O. Commands on their way to the server: outlives the connections that send them."""

import asyncio

from bus import wire
from bus.errors import BusUnavailable

UP_BYTES = 16 * 2**20
DOWN_BYTES = 2**20
"""What is kept while there is no connection: stale messages help nobody, so little."""


class Outbox:
    """A bounded buffer of whole protocol commands; `put` never waits, and wakes the sender once per loop turn."""

    def __init__(self) -> None:
        self._commands: list[bytes] = []
        self._num_bytes = 0
        self._limit = DOWN_BYTES
        self._is_asked = False
        self.wake = asyncio.Event()

    def put(self, *pieces: bytes) -> None:
        """Append one command in one or more pieces; raise `BusUnavailable` when there is no room for it."""
        num_bytes = self._num_bytes
        for piece in pieces:
            num_bytes += len(piece)
        if num_bytes > self._limit:
            raise BusUnavailable(
                f"the send buffer holds {self._num_bytes} bytes: the broker is away or reads too slowly"
            )
        self._num_bytes = num_bytes
        self._commands += pieces
        self._ask()

    def put_small(self, command: bytes) -> None:
        """Append a command of a few bytes, also to a full buffer.

        There are few of them by nature: one a delivery, subscription or PING.
        """
        self._num_bytes += len(command)
        self._commands.append(command)
        self._ask()

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self.wake.set()

    def take(self) -> list[bytes]:
        """Return all commands in order and forget them."""
        commands, self._commands = self._commands, []
        self._num_bytes = 0
        self._is_asked = False
        self.wake.clear()
        return commands

    def open(self, *, is_same_server: bool) -> None:
        """A connection is there: raise the bound, and drop what only meant the connection or server before it.

        Acknowledgements name positions of streams that another server may have filled anew.
        """
        self._limit = UP_BYTES
        kept = [command for command in self.take() if command is not wire.PING and command is not wire.PONG]
        if not is_same_server:
            kept = [command for command in kept if not isinstance(command, wire.Ack)]
        self._commands = kept
        self._num_bytes = sum(map(len, kept))
        if kept:
            self._ask()

    def close(self) -> None:
        """The connection is gone: lower the bound for what comes."""
        self._limit = DOWN_BYTES
