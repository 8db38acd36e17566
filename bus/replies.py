"""I/O. Who waits for a reply: one subscription and one timer for all, a token each, and an end for every wait."""

import asyncio
import secrets
from collections.abc import Callable

import msgspec

from bus.errors import BusUnavailable
from bus.protocol import Incoming

INBOX = "_INBOX"

SWEEP_S = 0.05
"""How much later than due a wait may end."""
MAX_WAITING = 65_536

OnReply = Callable[[Incoming | BusUnavailable], None]
"""Called once, with the first reply or why there is none."""


class _Wait(msgspec.Struct, frozen=True):
    on_reply: OnReply
    what: str
    timeout_s: float
    ends_at: float


class Replies:
    """Callbacks by the last token of their reply subject."""

    def __init__(self, name: str) -> None:
        """`name` is a token: others can be kept from listening to the inboxes of a name."""
        self._inbox = f"{INBOX}.{name}.{secrets.token_hex(8)}"
        self._prefix = f"{self._inbox}."
        self._waiting: dict[str, _Wait] = {}
        self._last = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0

    @property
    def filter(self) -> str:
        """What to subscribe to."""
        return f"{self._inbox}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses, outside `filter`."""
        self._last += 1
        return f"{self._inbox}x.{self._last:x}"

    def open(self, on_reply: OnReply, what: str, timeout_s: float) -> str:
        """Return a fresh reply subject for a question about `what`; raise `BusUnavailable` when too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            raise BusUnavailable(f"{what}: {MAX_WAITING} questions wait for the broker's answer already")
        loop = asyncio.get_running_loop()
        self._last += 1
        token = f"{self._last:x}"
        self._waiting[token] = _Wait(on_reply, what, timeout_s, loop.time() + timeout_s)
        if self._sweep_timer is None:
            self._sweep_soon()
        return self._prefix + token

    def close(self, reply: str) -> None:
        """Wait no longer; what is over may be closed, too."""
        self._waiting.pop(reply[len(self._prefix) :], None)

    def take(self, incoming: Incoming) -> None:
        """Hand a reply to who waits for it; late and unknown ones are dropped."""
        wait = self._waiting.pop(incoming.subject[len(self._prefix) :], None)
        if wait is not None:
            wait.on_reply(incoming)

    def fail_all(self, reason: str) -> None:
        """The connection is gone: no reply that was asked for will come."""
        waiting, self._waiting = self._waiting, {}
        for wait in waiting.values():
            asyncio.get_running_loop().call_soon(wait.on_reply, BusUnavailable(reason))

    def _sweep_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep_at = loop.time() + SWEEP_S
        self._sweep_timer = loop.call_at(self._sweep_at, self._sweep)

    def _sweep(self) -> None:
        """End what was over when this was due: a process that stood still first reads what came meanwhile."""
        for token in [token for token, wait in self._waiting.items() if wait.ends_at <= self._sweep_at]:
            wait = self._waiting.pop(token)
            error = BusUnavailable(f"{wait.what}: no answer within {wait.timeout_s:.3g} s")
            asyncio.get_running_loop().call_soon(wait.on_reply, error)
        self._sweep_timer = None
        if self._waiting:
            self._sweep_soon()
