"""I/O. Commands on their way to the server: outlives the connections that send them."""

import asyncio
from collections.abc import Callable

from bus import wire
from bus.errors import BusUnavailable

UP_BYTES = 16 * 2**20
DOWN_BYTES = 2**20
"""What is kept while there is no connection: stale messages help nobody, so little."""
LATE_S = 0.05
"""How long a command may wait for others to go with: one more write takes more CPU time than all that is before it."""


class Outbox:
    """A bounded buffer of whole protocol commands; `put` never waits, and calls for a sender once per loop turn."""

    def __init__(self) -> None:
        self._commands: list[bytes] = []
        self._num_bytes = 0
        self._limit = DOWN_BYTES
        self._is_asked = True
        """Somebody takes what is here before long; while there is no connection, whoever opens the next one."""
        self._is_due = False
        """Something here is not late."""
        self._send: Callable[[], None] = _send_nothing
        self._late: asyncio.TimerHandle | None = None

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
        self._is_due = True
        if not self._is_asked:
            self._ask()

    def put_small(self, command: bytes) -> None:
        """Append a command of a few bytes, also to a full buffer.

        There are few of them by nature: one a delivery, subscription or PING.
        """
        self._num_bytes += len(command)
        self._commands.append(command)
        self._is_due = True
        if not self._is_asked:
            self._ask()

    def put_late(self, command: bytes) -> None:
        """Append as `put_small` does, to be sent with what comes next, `LATE_S` from now at the latest."""
        self._num_bytes += len(command)
        self._commands.append(command)
        if not self._is_asked:
            self._wait()

    def take(self) -> list[bytes]:
        """Return all commands in order and forget them."""
        commands, self._commands = self._commands, []
        self._num_bytes = 0
        self._is_asked = self._is_due = False
        return commands

    def hold(self) -> None:
        """Call for nobody until `release`: who reads a burst of messages sends all answers at once."""
        self._is_asked = True

    def release(self) -> None:
        """Call for the sender now, if anything but late commands is here."""
        if self._is_due:
            self._send()
        else:
            self._is_asked = False
            if self._commands:
                self._wait()

    def open(self, send: Callable[[], None], *, keeps_answers: bool) -> None:
        """A connection is there: raise the bound, and drop what only meant the connection before it.

        Without `keeps_answers` that includes acknowledgements: another server may have filled anew the streams whose
        positions they name, and the right to answer may have ended with the connection. `send` is called in turns of
        its own, and is to `take`.
        """
        self._limit = UP_BYTES
        kept = [command for command in self.take() if command is not wire.PING and command is not wire.PONG]
        if not keeps_answers:
            kept = [command for command in kept if not isinstance(command, wire.Ack)]
        self._commands = kept
        self._num_bytes = sum(map(len, kept))
        self._send = send
        if kept:
            self._is_due = True
            self._ask()

    def close(self) -> None:
        """The connection is gone: lower the bound for what comes."""
        self._limit = DOWN_BYTES
        self._send = _send_nothing
        self._is_asked = True

    def _ask(self) -> None:
        self._is_asked = True
        asyncio.get_running_loop().call_soon(self._send)

    def _wait(self) -> None:
        if self._late is None:
            self._late = asyncio.get_running_loop().call_later(LATE_S, self._end_wait)

    def _end_wait(self) -> None:
        self._late = None
        if self._commands and not self._is_asked:
            self._ask()


def _send_nothing() -> None:
    """Nobody is connected."""
