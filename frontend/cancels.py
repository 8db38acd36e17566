"""I/O. Tells workers to drop tickets, each ticket at most once a second."""

from collections.abc import Iterable, Sequence

import structlog

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.messages.base import pack_u32
from bus.messages.inference import Cancel
from bus.metrics import FRONTEND_CANCELS
from bus.protocol import Bus
from bus.subjects import ANY_WORKER

AGAIN_S = 1.0
MAX_REMEMBERED = 100_000
"""Tickets cancelled within the last second; while there are more, nothing is told, and workers will ask again."""

log = structlog.get_logger()


class Cancels:
    """Sends `Cancel`. A message that is lost is sent again when the worker's next token for the ticket arrives."""

    def __init__(self, bus: Bus, frontend: str) -> None:
        self._bus = bus
        self._frontend = frontend
        self._told_at: dict[int, float] = {}
        """By ticket, oldest first."""

    def tell(self, worker: str, tickets: Iterable[int], now: float) -> None:
        """Tell the worker that has these tickets to drop them."""
        self._forget(now)
        due = [ticket for ticket in tickets if ticket not in self._told_at]
        if due and len(self._told_at) <= MAX_REMEMBERED:
            self._told_at |= dict.fromkeys(due, now)
            self._publish(worker, due)

    def tell_all(self, tickets: Sequence[int]) -> None:
        """Tell every worker, for tickets that nobody accepted: whoever gets them drops them at once."""
        self._publish(ANY_WORKER, tickets)

    def _publish(self, worker: str, tickets: Sequence[int]) -> None:
        FRONTEND_CANCELS.inc(len(tickets))
        cancel = Cancel(frontend=self._frontend, tickets=pack_u32(tickets))
        try:
            self._bus.publish(self._bus.subjects.ctl(worker), encode(cancel))
        except BusUnavailable:
            log.debug("cancel.not_sent", worker=worker, num_tickets=len(tickets))

    def _forget(self, now: float) -> None:
        while self._told_at:
            oldest = next(iter(self._told_at))
            if now - self._told_at[oldest] < AGAIN_S:
                return
            del self._told_at[oldest]
