"""I/O. What a router tells the owners of requests: that one is refused, and when to come again."""

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.messages.inference import Failed, StepBatch
from bus.protocol import Bus
from components.router.pool import Refusal
from components.router.request import Origin

MAX_FRONTENDS = 4096
"""With numbered batches; the one first answered is forgotten first, and its numbers start again."""


class Answers:
    """Publishes refusals as a worker would: each is a batch of its own, numbered for its frontend."""

    def __init__(self, bus: Bus, router: str) -> None:
        self._bus = bus
        self._router = router
        self._next_seq: dict[str, int] = {}

    def refuse(self, origin: Origin, refusal: Refusal) -> bool:
        """Tell the owner; return whether the bus took it."""
        failed = Failed(origin.ticket, refusal.code, refusal.message, False, refusal.retry_after_s)
        seq = self._next_seq.get(origin.frontend, 0)
        batch = StepBatch(worker=self._router, seq=seq, failed=[failed])
        try:
            self._bus.publish(self._bus.subjects.out(origin.frontend, self._router), encode(batch))
        except BusUnavailable:
            return False
        if seq == 0 and len(self._next_seq) >= MAX_FRONTENDS:
            del self._next_seq[next(iter(self._next_seq))]
        self._next_seq[origin.frontend] = seq + 1
        return True
