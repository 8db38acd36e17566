"""Pure. Whether there is any sense in one more request: how long it would wait behind those that wait already."""

from collections import defaultdict
from collections.abc import Iterable

from bus.drain import DrainRate
from frontend.errors import Overloaded
from frontend.request import Request

MIN_WAITING = 4
"""Fewer say nothing about a queue: one of them may be lost."""
Key = tuple[str, str]
"""Model and latency class: each has a queue of its own."""


class _Queue:
    """The requests of one model and class that no worker has accepted yet, and how fast they become fewer."""

    def __init__(self) -> None:
        self.waiting: set[Request] = set()
        self.drain = DrainRate()
        self.num_new = 0
        """Taken since the last look."""
        self.wait_s = 0.0
        """Twice the time that the middle one has waited: what the last one will, if the queue stays as long."""

    def update(self, waiting: set[Request], now: float) -> None:
        # What came since and does not wait has been taken, too: most requests never wait for as long as a look takes.
        num_taken = len(self.waiting) + self.num_new - len(waiting)
        self.drain.note(now, max(0, num_taken), had_queue=bool(self.waiting))
        self.waiting, self.num_new = waiting, 0
        ages = sorted([now - request.opened_at for request in waiting])
        self.wait_s = 2 * ages[len(ages) // 2] if len(ages) >= MIN_WAITING else 0.0

    def expected_wait_s(self) -> float:
        """Estimate how long one more waits: as long as those before it need at their pace; a queue that grows shows
        in that sooner than in how long they have waited.
        """
        if not self.wait_s:
            return 0.0
        rate = self.drain.per_s
        return max(self.wait_s, (len(self.waiting) + self.num_new) / rate) if rate else self.wait_s


class Admission:
    """The queues as of the last `update`, and what has been admitted since."""

    def __init__(self, max_queue_s: float) -> None:
        self._max_queue_s = max_queue_s
        self._queues: dict[Key, _Queue] = {}

    def update(self, waiting: Iterable[Request], now: float) -> None:
        """Take note of the requests that no worker has accepted yet; a queue that is empty is forgotten."""
        found: defaultdict[Key, set[Request]] = defaultdict(set)
        for request in waiting:
            generation = request.generation
            found[generation.model_slug, generation.latency_class].add(request)
        self._queues = {key: self._queues.get(key) or _Queue() for key in found}
        for key, queue in self._queues.items():
            queue.update(found[key], now)

    def check(self, model_slug: str, latency_class: str) -> None:
        """Take note of a request that is to wait; raise `Overloaded` where that would be for longer than it may."""
        queue = self._queues.get((model_slug, latency_class))
        if queue is None:
            return
        wait_s = queue.expected_wait_s()
        if wait_s > self._max_queue_s:
            message = f"Requests wait {wait_s:.1f} s for a worker at present, more than {self._max_queue_s:g} s."
            raise Overloaded(message, delay_s=wait_s - self._max_queue_s / 2)
        queue.num_new += 1
