"""I/O. Sends what the outboxes hold: one message for each frontend and step, later and merged while the bus is full."""

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.protocol import Bus
from components.worker.outbox import Outbox
from components.worker.sent import Sent


class Publisher:
    """Outboxes by frontend, sent when told to. Nothing waits, nothing is dropped but by `give_up` of the worker."""

    def __init__(self, bus: Bus, worker: str) -> None:
        self.outboxes: dict[str, Outbox] = {}
        self._bus = bus
        self._worker = worker
        self._subjects: dict[str, str] = {}
        self._sent: dict[str, Sent] = {}

    def outbox(self, frontend: str) -> Outbox:
        """Return the outbox of `frontend`, made at the first call."""
        outbox = self.outboxes.get(frontend)
        if outbox is None:
            outbox = self.outboxes[frontend] = Outbox(frontend)
            self._subjects[frontend] = self._bus.subjects.out(frontend, self._worker)
            self._sent[frontend] = Sent()
        return outbox

    def forget(self, frontend: str) -> None:
        """Drop the outbox of a frontend that is gone."""
        self.outboxes.pop(frontend, None)
        self._subjects.pop(frontend, None)
        self._sent.pop(frontend, None)

    def flush(self) -> bool:
        """Send all that waits; return False when the bus takes no more: what is left goes with the next flush."""
        for frontend, outbox in self.outboxes.items():
            while not outbox.is_empty:
                payload = encode(outbox.next_batch(self._worker))
                try:
                    self._bus.publish(self._subjects[frontend], payload)
                except BusUnavailable:
                    return False
                outbox.mark_sent()
                self._sent[frontend].add(payload)
        return True

    def resend(self, frontend: str, seq: int) -> None:
        """Send batches again that were lost on the way, from number `seq` on: a frontend takes no token twice.

        When they are forgotten, or the bus is full, nothing happens, and the frontend asks another worker to go on.
        """
        sent = self._sent.get(frontend)
        if sent is None:
            return
        for payload in sent.since(seq):
            try:
                self._bus.publish(self._subjects[frontend], payload)
            except BusUnavailable:
                return

    async def repeat_last(self) -> None:
        """What was in the socket when the connection broke may be lost: the number of the last batch tells whom."""
        for frontend, sent in list(self._sent.items()):
            self.resend(frontend, sent.next_seq - 1)
