"""I/O. The metrics of every process on the bus, for whoever asks one of them: workers open no port for that."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import structlog

from bus.codec import encode
from bus.errors import BuswayError
from bus.messages.fleet import MetricsQuery, ProcessMetrics
from bus.metrics import render
from bus.protocol import Bus, Incoming
from bus.typed import subscribe_typed

TIMEOUT_S = 1.0
QUIET_S = 0.1
"""After so long without another answer all are there."""
MAX_PROCESSES = 4096
MAX_TEXT = 2**20
"""Characters of one process's metrics."""

log = structlog.get_logger()


@contextmanager
def answer_scrapes(bus: Bus, process: str) -> Iterator[None]:
    """Tell this process's metrics to those who ask while the context is open."""

    def answer(query: MetricsQuery, incoming: Incoming) -> None:
        if not incoming.reply:
            return
        try:
            bus.publish(incoming.reply, encode(ProcessMetrics(process=process, text=render().decode())))
        except BuswayError as error:
            log.debug("scrape.unanswered", reason=str(error)[:200])

    subscription = subscribe_typed(bus, bus.subjects.metrics(), MetricsQuery, answer)
    try:
        yield
    finally:
        subscription.unsubscribe()


async def scrape(bus: Bus) -> dict[str, str]:
    """Return the metrics of the processes that answer within `TIMEOUT_S`, as text, by name."""
    texts: dict[str, str] = {}
    heard = anyio.Event()

    def take(answer: ProcessMetrics, incoming: Incoming) -> None:
        nonlocal heard
        if len(texts) < MAX_PROCESSES and len(answer.text) <= MAX_TEXT:
            texts[answer.process] = answer.text
            heard.set()

    inbox = bus.new_inbox()
    subscription = subscribe_typed(bus, inbox, ProcessMetrics, take)
    try:
        bus.publish(bus.subjects.metrics(), encode(MetricsQuery()), reply=inbox)
        with anyio.move_on_after(TIMEOUT_S):
            await heard.wait()
            while True:
                heard = anyio.Event()
                with anyio.move_on_after(QUIET_S) as quiet:
                    await heard.wait()
                if quiet.cancelled_caught:
                    break
    finally:
        subscription.unsubscribe()
    return texts
