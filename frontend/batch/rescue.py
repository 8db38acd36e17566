"""I/O. Finds batches whose jobs were lost, by a disk that rots or by hand, and has them carried on.

A batch that has not ended and has no job would wait for ever. One that was just created, or has just ended, looks so
for a moment: only what does so twice, and did not move meanwhile, is lost.
"""

import anyio
import structlog

from bus.errors import BuswayError
from bus.protocol import Bus
from frontend.batch.store import Batches, Found

LOOK_EVERY_S = 300.0
SOON_S = 10.0
"""After the start and after a reconnect: a broker shows what it has lost when it starts; and between two looks at what
seems to be lost. Longer than a batch takes to be created."""

log = structlog.get_logger()


class Rescue:
    """Looks now and then."""

    def __init__(self, bus: Bus, batches: Batches) -> None:
        self._batches = batches
        self._suspects: dict[str, Found] = {}
        self._reconnected = anyio.Event()
        bus.on_reconnect(self._note_reconnect)

    async def run(self) -> None:
        """Look until cancelled."""
        is_soon = True
        while True:
            with anyio.move_on_after(SOON_S if is_soon else LOOK_EVERY_S):
                await self._reconnected.wait()
                self._reconnected = anyio.Event()
                is_soon = True
                continue
            try:
                await self._look()
            except BuswayError as error:
                log.debug("batch.not_looked_for", reason=str(error))
            is_soon = bool(self._suspects)

    async def _look(self) -> None:
        before, self._suspects = self._suspects, await self._batches.find_without_job()
        for batch, found in self._suspects.items():
            if batch in before and before[batch].revision == found.revision:
                log.warning("batch.job_lost", batch=batch, status=found.stored.status)
                await self._batches.put_job_again(batch, found)

    async def _note_reconnect(self) -> None:
        self._reconnected.set()
