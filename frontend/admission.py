"""Pure. Whether there is any sense in taking one more request: how long those before it wait for a worker."""

from collections import defaultdict
from collections.abc import Iterable

from frontend.errors import Overloaded
from frontend.request import Request

MIN_WAITING = 4
"""Fewer say nothing about a queue: one of them may be lost."""


class Admission:
    """Waiting times by model and latency class, as of the last `update`."""

    def __init__(self, max_queue_s: float) -> None:
        self._max_queue_s = max_queue_s
        self._wait_s: dict[tuple[str, str], float] = {}

    def update(self, waiting: Iterable[Request], now: float) -> None:
        """Take note of the requests that no worker has accepted yet.

        Of a queue that moves on evenly, the one in the middle has waited half of what the last one will.
        """
        ages: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for request in waiting:
            generation = request.generation
            ages[generation.model_slug, generation.latency_class].append(now - request.opened_at)
        self._wait_s = {key: 2 * sorted(each)[len(each) // 2] for key, each in ages.items() if len(each) >= MIN_WAITING}

    def check(self, model_slug: str, latency_class: str) -> None:
        """Raise `Overloaded` where a new request would wait for longer than it may."""
        if not self._wait_s:
            return
        wait_s = self._wait_s.get((model_slug, latency_class), 0.0)
        if wait_s > self._max_queue_s:
            message = f"Requests wait {wait_s:.1f} s for a worker at present, more than {self._max_queue_s:g} s."
            raise Overloaded(message, delay_s=wait_s - self._max_queue_s / 2)
