"""I/O. Sends what the outboxes hold: one message for each frontend and step, later and merged while the bus is full."""

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.protocol import Bus
from components.worker.outbox import Outbox


class Publisher:
    """Outboxes by frontend, sent when told to. Nothing waits, nothing is dropped but by `give_up` of the worker."""

    def __init__(self, bus: Bus, worker: str) -> None:
        self.outboxes: dict[str, Outbox] = {}
        self._bus = bus
        self._worker = worker
        self._subjects: dict[str, str] = {}

    def outbox(self, frontend: str) -> Outbox:
        """Return the outbox of `frontend`, made at the first call."""
        outbox = self.outboxes.get(frontend)
        if outbox is None:
            outbox = self.outboxes[frontend] = Outbox(frontend)
            self._subjects[frontend] = self._bus.subjects.out(frontend, self._worker)
        return outbox

    def forget(self, frontend: str) -> None:
        """Drop the outbox of a frontend that is gone."""
        self.outboxes.pop(frontend, None)
        self._subjects.pop(frontend, None)

    def flush(self) -> bool:
        """Send all that waits; return False when the bus takes no more: what is left goes with the next flush."""
        for frontend, outbox in self.outboxes.items():
            while not outbox.is_empty:
                try:
                    self._bus.publish(self._subjects[frontend], encode(outbox.next_batch(self._worker)))
                except BusUnavailable:
                    return False
                outbox.mark_sent()
        return True
