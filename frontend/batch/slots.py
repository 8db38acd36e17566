"""I/O. Places for lines in flight: as many as the pace allows, which goes by whether anybody waits."""

import time

import anyio

from frontend.batch.pace import Pace
from frontend.dispatch import Dispatcher
from frontend.fleet import Fleet

LOOK_EVERY_S = 0.25


class Slots:
    """The places of all batches of this frontend."""

    def __init__(self, dispatcher: Dispatcher, fleet: Fleet) -> None:
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._pace = Pace()
        self._num_taken = 0
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Adapt the pace until cancelled."""
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            if self._num_taken:
                self._pace.look(is_crowded=self._is_crowded(), num_in_flight=self._num_taken)
            self._wake()

    async def take(self) -> None:
        """Wait for a place."""
        while self._num_taken >= self._pace.limit:
            await self._changed.wait()
        self._num_taken += 1

    def release(self) -> None:
        """Give a place back."""
        self._num_taken -= 1
        self._wake()

    def slow_down(self) -> None:
        """A line was refused for lack of room."""
        self._pace.slow_down()

    def _is_crowded(self) -> bool:
        """Whether anybody waits for a worker: sequences inside of one, or what was asked for here and is not taken."""
        now = time.monotonic()
        if self._fleet.has_waiting(now):
            return True
        unaccepted = self._dispatcher.requests.unaccepted(before=now - LOOK_EVERY_S)
        return any(request.generation.latency_class != "batch" for request in unaccepted)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
