"""I/O. Watches the registry for frontends, and stops the work of those that are gone."""

import time

import anyio
import structlog

from bus.protocol import Bus, Entry
from components.worker.presence import Presence
from components.worker.sequences import Sequences

LOOK_EVERY_S = 1.0

log = structlog.get_logger()


class OwnerWatch:
    """Aborts the attempts of frontends that left the registry for good, so that their slots serve others."""

    def __init__(self, bus: Bus, sequences: Sequences) -> None:
        self._bus = bus
        self._sequences = sequences
        self._presence = Presence()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with self._bus.bucket("REG").watch(self._on_entry):
            while True:
                await anyio.sleep(LOOK_EVERY_S)
                if not self._bus.is_connected:
                    self._presence.suspend()
                    continue
                for owner in self._presence.find_gone(self._sequences.publisher.outboxes, time.monotonic()):
                    num_sequences = self._sequences.abandon(owner)
                    log.info("frontend.lost", frontend=owner, num_sequences=num_sequences)

    def _on_entry(self, entry: Entry) -> None:
        kind, _, frontend = entry.key.partition(".")
        if kind != "frontend":
            return
        if entry.value is None:
            self._presence.leave(frontend)
        else:
            self._presence.arrive(frontend)
