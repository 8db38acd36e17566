"""I/O. Places for lines in flight: as many as the pace allows, which goes by whether anybody waits."""

import time

import anyio

from bus.messages.fleet import WorkerLoad
from bus.protocol import Bus, Incoming
from bus.typed import subscribe_typed
from frontend.batch.pace import Pace
from frontend.dispatch import Dispatcher

LOOK_EVERY_S = 0.25
FRESH_S = 1.0
"""Age up to which what a worker said of its load counts."""


class Slots:
    """The places of all batches of this frontend."""

    def __init__(self, bus: Bus, dispatcher: Dispatcher) -> None:
        self._bus = bus
        self._dispatcher = dispatcher
        self._pace = Pace()
        self._num_taken = 0
        self._changed = anyio.Event()
        self._waiting: dict[str, tuple[int, float]] = {}
        """By worker: sequences that wait there, and when it said so; only while lines are in flight."""

    async def run(self) -> None:
        """Adapt the pace until cancelled."""
        loads = subscribe_typed(self._bus, self._bus.subjects.load("*", "*"), WorkerLoad, self._on_load)
        try:
            while True:
                await anyio.sleep(LOOK_EVERY_S)
                if self._num_taken:
                    self._pace.look(is_crowded=self._is_crowded(), num_in_flight=self._num_taken)
                else:
                    self._waiting.clear()
                self._wake()
        finally:
            loads.unsubscribe()

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
        self._waiting = {worker: seen for worker, seen in self._waiting.items() if now - seen[1] < FRESH_S}
        if any(num_waiting for num_waiting, _ in self._waiting.values()):
            return True
        unaccepted = self._dispatcher.requests.unaccepted(before=now - LOOK_EVERY_S)
        return any(request.generation.latency_class != "batch" for request in unaccepted)

    def _on_load(self, load: WorkerLoad, incoming: Incoming) -> None:
        if self._num_taken:
            self._waiting[load.worker] = (load.waiting, time.monotonic())

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
