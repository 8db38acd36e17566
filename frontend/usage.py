"""I/O. Publishes what each request used, beside the requests and never in their way."""

import asyncio

import anyio
import structlog

from bus.codec import encode
from bus.errors import BuswayError
from bus.messages.inference import RequestUsage
from bus.metrics import FRONTEND_USAGE_LOST
from bus.protocol import Bus
from bus.subjects import slug

MAX_WAITING = 10_000
"""Records kept while the broker is away; more are lost, counted and logged."""
NUM_PUBLISHERS = 8
MAX_TRIES = 5
RETRY_S = 0.5

log = structlog.get_logger()


class UsagePublisher:
    """Stores `RequestUsage` in the stream USAGE, once per request (the stream drops what is sent twice)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: asyncio.Queue[RequestUsage | None] = asyncio.Queue()
        """None tells one publisher to stop."""

    def publish(self, usage: RequestUsage) -> None:
        """Hand a record over, without waiting."""
        if self._waiting.qsize() >= MAX_WAITING:
            FRONTEND_USAGE_LOST.inc()
        else:
            self._waiting.put_nowait(usage)

    def close(self) -> None:
        """Take no more; `run` returns when what waits is stored."""
        for _ in range(NUM_PUBLISHERS):
            self._waiting.put_nowait(None)

    async def run(self) -> None:
        """Publish until closed and empty."""
        async with anyio.create_task_group() as tasks:
            for _ in range(NUM_PUBLISHERS):
                tasks.start_soon(self._publish)

    async def _publish(self) -> None:
        while (usage := await self._waiting.get()) is not None:
            await self._store(usage)

    async def _store(self, usage: RequestUsage) -> None:
        subject = self._bus.subjects.usage(slug(usage.model), usage.tenant)
        for number in range(MAX_TRIES):
            try:
                await self._bus.append(subject, encode(usage), msg_id=usage.request_id)
                return
            except BuswayError as error:
                if number + 1 == MAX_TRIES:
                    FRONTEND_USAGE_LOST.inc()
                    log.warning("usage.lost", request_id=usage.request_id, reason=str(error))
                    return
                await anyio.sleep(RETRY_S)
