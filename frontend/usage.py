"""I/O. Publishes what requests used, a few at a time: beside the requests and never in their way."""

import secrets

import anyio
import structlog

from bus.codec import encode
from bus.errors import BuswayError, Retryable
from bus.messages.inference import RequestUsage, UsageBatch
from bus.metrics import FRONTEND_USAGE_LOST
from bus.protocol import Bus
from bus.subjects import slug

MAX_WAITING = 10_000
"""Records kept while the broker is away; more are lost, counted and logged."""
MAX_BATCH = 500
GATHER_S = 0.05
"""Records wait so long for others of their tenant and model."""
KEPT_S = 100.0
"""How long a record is tried to be stored: a cluster may be parted for a while. After two minutes the stream has
forgotten what it has, and would take it twice."""
RETRY_S = 0.5

log = structlog.get_logger()


class UsagePublisher:
    """Stores usages in the stream USAGE, each once (the stream drops a batch that is sent twice)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: list[RequestUsage] = []
        self._arrived = anyio.Event()
        self._is_closed = False

    def publish(self, usage: RequestUsage) -> None:
        """Hand a record over, without waiting."""
        if len(self._waiting) >= MAX_WAITING:
            FRONTEND_USAGE_LOST.inc()
            return
        if not self._waiting:
            self._arrived.set()
        self._waiting.append(usage)

    def close(self) -> None:
        """Take no more; `run` returns when what waits is stored."""
        self._is_closed = True
        self._arrived.set()

    async def run(self) -> None:
        """Publish until closed and empty."""
        while self._waiting or not self._is_closed:
            await self._arrived.wait()
            if not self._is_closed:
                await anyio.sleep(GATHER_S)
                self._arrived = anyio.Event()
            taken, self._waiting = self._waiting, []
            for (model, tenant), requests in _group(taken).items():
                for start in range(0, len(requests), MAX_BATCH):
                    await self._store(model, UsageBatch(tenant=tenant, requests=requests[start : start + MAX_BATCH]))

    async def _store(self, model: str, batch: UsageBatch) -> None:
        subject = self._bus.subjects.usage(slug(model), batch.tenant)
        msg_id = secrets.token_hex(16)
        give_up_at = anyio.current_time() + KEPT_S
        while True:
            try:
                await self._bus.append(subject, encode(batch), msg_id=msg_id)
                return
            except BuswayError as error:
                if not isinstance(error, Retryable) or anyio.current_time() + RETRY_S > give_up_at:
                    FRONTEND_USAGE_LOST.inc(len(batch.requests))
                    log.warning("usage.lost", num_requests=len(batch.requests), reason=str(error))
                    return
            await anyio.sleep(RETRY_S)


def _group(usages: list[RequestUsage]) -> dict[tuple[str, str], list[RequestUsage]]:
    groups: dict[tuple[str, str], list[RequestUsage]] = {}
    for usage in usages:
        groups.setdefault((usage.model, usage.tenant), []).append(usage)
    return groups
