"""I/O. Watches the registry for frontends, and stops the work of those that are gone."""

import anyio
import structlog

from bus.gone import watch_gone
from bus.messages.fleet import FrontendCard
from bus.protocol import Bus
from bus.registry import watch_cards
from components.worker.presence import Presence
from components.worker.sequences import Sequences

LOOK_EVERY_S = 1.0
GONE_S = 1.0
"""A frontend that lost its connection is given so long to come back: what it asked for goes on meanwhile."""

log = structlog.get_logger()


class OwnerWatch:
    """Aborts the attempts of frontends that left the registry for good, so that their slots serve others."""

    def __init__(self, bus: Bus, sequences: Sequences) -> None:
        self._bus = bus
        self._sequences = sequences
        self._presence = Presence()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with watch_cards(self._bus, "frontend", FrontendCard, self._on_card):
            with watch_gone(self._bus, self._abandon, grace_s=GONE_S):
                await self._look_forever()

    async def _look_forever(self) -> None:
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            if not self._bus.is_connected:
                self._presence.suspend()
                continue
            for owner in self._presence.find_gone(self._sequences.publisher.outboxes, anyio.current_time()):
                self._abandon(owner)

    def _abandon(self, owner: str) -> None:
        if owner in self._sequences.publisher.outboxes:
            num_sequences = self._sequences.abandon(owner)
            log.info("frontend.lost", frontend=owner, num_sequences=num_sequences)

    def _on_card(self, frontend: str, card: FrontendCard | None) -> None:
        if card is None:
            self._presence.leave(frontend)
        else:
            self._presence.arrive(frontend)
