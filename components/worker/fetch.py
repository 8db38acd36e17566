"""I/O. The decoding side of a handover: the blocks that a prefill worker keeps are read as far as they are missing."""

from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.errors import BuswayError, TransferTimeout
from bus.messages.transfer import Handover
from bus.metrics import WORKER_FETCHES
from components.engines import Engine
from components.engines.exchange import Fill
from components.transfer import Transfer

EARLY_S = 5.0
"""An early offer that the engine did not ask for, or that did not come, within so long helps nobody."""
MAX_EARLY = 16
"""Early offers that are fetched at a time."""
CONNECT_S = 5.0
"""Bound on the wait for a transfer that is being opened; after that all is computed here."""

log = structlog.get_logger()
_outcomes = {outcome: WORKER_FETCHES.labels(outcome) for outcome in ("read", "early", "unneeded", "failed")}


class _Fetch:
    """One handover that is being taken."""

    def __init__(self, handover: Handover) -> None:
        self.handover = handover
        self.scope = anyio.CancelScope()
        self.asked = anyio.Event()
        self.fill: Fill | None = None
        self.is_reading = False
        self.is_over = False

    @property
    def is_right(self) -> bool:
        """Say whether the engine asks for exactly what is offered, to its end."""
        fill, handover = self.fill, self.handover
        return fill is not None and bool(fill.blocks) and fill.hashes[-1] == handover.last_hash


class Fetches:
    """Handovers of sequences in the engine, by key. Bounded by the worker's slots."""

    def __init__(self, engine: Engine, on_read: Callable[[int, float], None]) -> None:
        """`on_read` hears how many blocks came, and in how many seconds."""
        self._engine = engine
        self._on_read = on_read
        self._live: dict[int, _Fetch] = {}
        self._transfer: Transfer | None = None
        self._connected = anyio.Event()
        self._early: dict[int, str] = {}
        """Request ids of fetches for which no sequence waits."""

    def is_awaited(self, key: int) -> bool:
        """Say whether the engine asked for blocks of a sequence that are not here yet."""
        fetch = self._live.get(key)
        return fetch is not None and fetch.fill is not None

    def has_room(self, request_id: str) -> bool:
        """Say whether an early offer of that request may be started: one at a time, and not too many in all."""
        return len(self._early) < MAX_EARLY and request_id not in self._early.values()

    def start(self, key: int, request_id: str, handover: Handover, tasks: TaskGroup) -> None:
        """Hold on to the offer until the engine asks for blocks of it, or `stop`; `tasks` carries that."""
        fetch = self._live[key] = _Fetch(handover)
        if handover.is_early:
            self._early[key] = request_id
            fetch.scope.deadline = anyio.current_time() + EARLY_S
        tasks.start_soon(self._run, key, fetch)

    def decline(self, handover: Handover, tasks: TaskGroup) -> None:
        """Release an offer that is not needed, if that can be done at once; else its lease ends by itself."""
        if self._transfer is not None:
            tasks.start_soon(_release, self._transfer, handover)

    def connect(self, transfer: Transfer) -> None:
        """Read by this transfer; who was to wait for it goes on."""
        self._transfer = transfer
        self._connected.set()

    def on_fill(self, fill: Fill) -> None:
        """The engine asks; without an offer (any more), it is to compute all by itself."""
        fetch = self._live.get(fill.key)
        if fetch is None:
            self._engine.filled(fill.key, 0)
        else:
            fetch.fill = fill
            fetch.asked.set()

    def stop(self, key: int) -> None:
        """The blocks are needed no more: a read that goes on ends, and the offer is released."""
        fetch = self._live.pop(key, None)
        if fetch is not None:
            fetch.is_over = True
            fetch.asked.set()
            if fetch.is_reading:
                fetch.scope.cancel()

    async def _run(self, key: int, fetch: _Fetch) -> None:
        num_blocks, outcome, is_early = 0, "unneeded", fetch.handover.is_early
        with fetch.scope:
            try:
                num_blocks = await self._read(fetch, await self._find_transfer())
                if num_blocks:
                    outcome = "early" if is_early else "read"
                elif fetch.fill is not None and not fetch.is_over and not is_early:
                    outcome = "failed"
            except BuswayError as error:
                tell = log.debug if is_early else log.warning
                tell("handover.not_read", source=fetch.handover.worker, code=error.code, reason=str(error)[:300])
                outcome = "unneeded" if is_early else "failed"
        _outcomes[outcome].inc()
        self._live.pop(key, None)
        self._early.pop(key, None)
        if fetch.fill is not None:
            self._engine.filled(key, num_blocks)
        elif is_early:
            self._engine.abort(key)

    async def _find_transfer(self) -> Transfer:
        with anyio.move_on_after(CONNECT_S):
            await self._connected.wait()
        if self._transfer is None:
            raise TransferTimeout(f"no transfer was opened within {CONNECT_S:g} s")
        return self._transfer

    async def _read(self, fetch: _Fetch, transfer: Transfer) -> int:
        """Return how many blocks have come, from the first that the engine lacks; 0 when it wants others."""
        async with transfer.open(fetch.handover.offer) as source:
            await fetch.asked.wait()
            fill = fetch.fill
            if fill is None or fetch.is_over or not fetch.is_right:
                return 0
            started_at = anyio.current_time()
            fetch.is_reading = True
            await source.read(fill.start, fill.blocks)
        self._on_read(len(fill.blocks), anyio.current_time() - started_at)
        return len(fill.blocks)


async def _release(transfer: Transfer, handover: Handover) -> None:
    try:
        async with transfer.open(handover.offer):
            return
    except BuswayError as error:
        log.debug("handover.not_released", source=handover.worker, code=error.code)
