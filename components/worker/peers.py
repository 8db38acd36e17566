"""I/O. Who else is there, as their cards say: the other workers of the model with their roles, and its routers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from bus.gone import watch_gone
from bus.messages.fleet import RouterCard, WorkerCard
from bus.messages.inference import Role
from bus.protocol import Bus
from bus.registry import watch_cards


class Peers:
    """What a worker knows of others. A card that is late costs a detour, never a request."""

    def __init__(self, worker: str, model: str, on_change: Callable[[], None]) -> None:
        self.model = model
        self._worker = worker
        self._on_change = on_change
        self._changed = anyio.Event()
        self._roles: dict[str, frozenset[Role]] = {}
        self._take_early: set[str] = set()
        self._routers: set[str] = set()

    @property
    def roles(self) -> list[frozenset[Role]]:
        """The roles of each of the other workers."""
        return list(self._roles.values())

    @property
    def decoders(self) -> list[str]:
        """The other workers that have a lane for what was prefilled, and take early offers there."""
        return [worker for worker, roles in self._roles.items() if "decode" in roles and worker in self._take_early]

    @property
    def has_router(self) -> bool:
        """Somebody places the requests of this model."""
        return bool(self._routers)

    async def wait_change(self) -> None:
        """Wait until a worker comes, goes, or has other roles."""
        self._changed = anyio.Event()
        await self._changed.wait()

    @asynccontextmanager
    async def watch(self, bus: Bus) -> AsyncIterator[None]:
        """Follow the registry while the context is open."""
        async with (
            watch_cards(bus, "worker", WorkerCard, self._on_worker),
            watch_cards(bus, "router", RouterCard, self._on_router),
        ):
            with watch_gone(bus, self._on_gone):
                yield

    def _on_worker(self, worker: str, card: WorkerCard | None) -> None:
        if worker == self._worker:
            return
        roles = frozenset(card.roles) if card is not None and card.model == self.model else None
        if card is not None and roles is not None and card.takes_early:
            self._take_early.add(worker)
        else:
            self._take_early.discard(worker)
        if roles != self._roles.get(worker):
            if roles is None:
                del self._roles[worker]
            else:
                self._roles[worker] = roles
            self._changed.set()
            self._on_change()

    def _on_router(self, router: str, card: RouterCard | None) -> None:
        if card is not None and (not card.models or self.model in card.models):
            self._routers.add(router)
        else:
            self._routers.discard(router)

    def _on_gone(self, name: str) -> None:
        self._on_worker(name, None)
        self._on_router(name, None)
