"""I/O. Publishes what each request used, beside the requests and never in their way."""

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
        self._waiting, self._source = anyio.create_memory_object_stream[RequestUsage](MAX_WAITING)

    def publish(self, usage: RequestUsage) -> None:
        """Hand a record over, without waiting."""
        try:
            self._waiting.send_nowait(usage)
        except anyio.WouldBlock:
            FRONTEND_USAGE_LOST.inc()

    def close(self) -> None:
        """Take no more; `run` returns when what waits is stored."""
        self._waiting.close()

    async def run(self) -> None:
        """Publish until closed and empty."""
        async with anyio.create_task_group() as tasks:
            for _ in range(NUM_PUBLISHERS):
                tasks.start_soon(self._publish_from, self._source.clone())
            self._source.close()

    async def _publish_from(self, source: anyio.abc.ObjectReceiveStream[RequestUsage]) -> None:
        async with source:
            async for usage in source:
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
