"""I/O. Tells workers to drop tickets, each ticket at most once a second."""

from collections.abc import Iterable

import structlog

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.messages.base import pack_u32
from bus.messages.inference import Cancel
from bus.metrics import FRONTEND_CANCELS
from bus.protocol import Bus

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
        """Tell a worker to drop tickets. Without a worker (nobody accepted) there is nobody to tell yet."""
        self._forget(now)
        due = [ticket for ticket in tickets if ticket not in self._told_at]
        if not worker or not due or len(self._told_at) > MAX_REMEMBERED:
            return
        self._told_at |= dict.fromkeys(due, now)
        FRONTEND_CANCELS.inc(len(due))
        try:
            self._bus.publish(
                self._bus.subjects.ctl(worker), encode(Cancel(frontend=self._frontend, tickets=pack_u32(due)))
            )
        except BusUnavailable:
            log.debug("cancel.not_sent", worker=worker, num_tickets=len(due))

    def _forget(self, now: float) -> None:
        while self._told_at:
            oldest = next(iter(self._told_at))
            if now - self._told_at[oldest] < AGAIN_S:
                return
            del self._told_at[oldest]
