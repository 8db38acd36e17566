"""I/O. Tokens that were lost on the way: their worker is asked to send them again, before another attempt is made."""

import asyncio
from collections.abc import Callable

import structlog

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.messages.inference import Resume
from bus.protocol import Bus
from frontend.request import Request

PATIENCE_S = 0.25
"""How long missing tokens may take to come again; asking is done anew no sooner."""

log = structlog.get_logger()


class MissingTokens:
    """Requests that wait for tokens which should have come already."""

    def __init__(self, bus: Bus, frontend: str, give_up: Callable[[Request], None]) -> None:
        """`give_up` is called with each request whose tokens did not come again."""
        self._bus = bus
        self._frontend = frontend
        self._give_up = give_up
        self._asked_at: dict[str, float] = {}
        self._waiting: dict[int, tuple[Request, int]] = {}
        """By ticket: the request, and how many tokens it had."""
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, worker: str, seq: int, now: float) -> None:
        """Ask a worker for its batches from number `seq` on, once in a while; one that sent none later says nothing."""
        self._asked_at = {name: at for name, at in self._asked_at.items() if now - at < PATIENCE_S}
        if worker in self._asked_at:
            return
        self._asked_at[worker] = now
        log.debug("tokens.asked_again", worker=worker, seq=seq)
        try:
            self._bus.publish(self._bus.subjects.ctl(worker), encode(Resume(frontend=self._frontend, seq=seq)))
        except BusUnavailable:
            pass

    def wait(self, request: Request) -> None:
        """Let the request wait; it is given up unless some of its tokens come within `PATIENCE_S`."""
        self._waiting.setdefault(request.ticket, (request, request.num_tokens))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._look)

    def _look(self) -> None:
        """Give up those that got nothing; one that came to wait just now is looked at too early, at worst."""
        waiting, self._waiting, self._timer = self._waiting, {}, None
        for ticket, (request, num_tokens) in waiting.items():
            if request.is_live and request.ticket == ticket and request.num_tokens == num_tokens:
                self._give_up(request)
