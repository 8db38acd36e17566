"""I/O. What a router tells the owners of requests: that one is refused, or lost."""

from bus.codec import encode
from bus.errors import BusUnavailable, Malformed
from bus.messages.inference import Failed, StepBatch
from bus.messages.route import Placed
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
        return self._tell(origin.frontend, failed)

    def lose(self, placed: Placed) -> bool:
        """Tell the owner that nobody has its request any more; return whether the bus took it."""
        return self._tell(placed.frontend, Failed(placed.ticket, "router_lost", "Router and worker are gone.", True))

    def _tell(self, frontend: str, failed: Failed) -> bool:
        seq = self._next_seq.get(frontend, 0)
        batch = StepBatch(worker=self._router, seq=seq, failed=[failed])
        try:
            self._bus.publish(self._bus.subjects.out(frontend, self._router), encode(batch))
        except (BusUnavailable, Malformed):
            return False
        if seq == 0 and len(self._next_seq) >= MAX_FRONTENDS:
            del self._next_seq[next(iter(self._next_seq))]
        self._next_seq[frontend] = seq + 1
        return True
