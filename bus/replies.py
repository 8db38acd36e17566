"""I/O. Who waits for a reply: one subscription for all, a token each, and an end for every wait."""

import asyncio
import secrets

from bus.errors import BusUnavailable
from bus.protocol import Incoming


class Replies:
    """Futures by the last token of their reply subject."""

    def __init__(self) -> None:
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._waiting: dict[str, asyncio.Future[Incoming]] = {}
        self._last = 0

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

    def open(self) -> tuple[str, "asyncio.Future[Incoming]"]:
        """Return a fresh reply subject and what its first message will resolve; `close` it in any case."""
        self._last += 1
        token = f"{self._last:x}"
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        return f"{self._inbox}.{token}", future

    def close(self, reply: str) -> None:
        del self._waiting[reply[len(self._inbox) + 1 :]]

    def take(self, incoming: Incoming) -> None:
        """Hand a reply to who waits for it; late and unknown ones are dropped."""
        future = self._waiting.get(incoming.subject[len(self._inbox) + 1 :])
        if future is not None and not future.done():
            future.set_result(incoming)

    def fail_all(self, reason: str) -> None:
        """The connection is gone: no reply that was asked for will come."""
        for future in self._waiting.values():
            fail(future, reason)


def fail(future: "asyncio.Future[Incoming]", reason: str) -> None:
    """End a wait with `BusUnavailable`, if it is not over."""
    if not future.done():
        future.set_exception(BusUnavailable(reason))
