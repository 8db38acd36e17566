"""Takes detection, fencing and bookkeeping out of a frontend or a worker process, when this folder is on its path.

What is left serves as long as nothing ever fails: see `tests/bench/fencing.py`.
"""

import sys
from typing import Any

import anyio

from frontend.requests import StepOutcome, column


def take(self: Any, batch: Any, now: float) -> StepOutcome:
    """Push all tokens of a batch, believing that they are the next ones; stands for `Requests.take`."""
    outcome = StepOutcome({}, [], [], {}, set(), None)
    by_ticket, touched = self._by_ticket, outcome.touched
    for accepted in batch.accepted:
        request = by_ticket.get(accepted.ticket)
        if request is not None:
            request.worker, request.cached_tokens = batch.worker, accepted.cached_tokens
    gaps = self._gaps
    counts, scale = gaps.counts, gaps.SCALE
    for ticket, token in zip(column(batch.tickets), column(batch.tokens), strict=True):
        request = by_ticket.get(ticket)
        if request is None:
            continue
        if request.num_tokens:
            gap = now - request.last_token_at
            counts[int(gap * scale).bit_length()] += 1
            gaps.sum += gap
        else:
            request.first_token_at = now
        request.num_tokens += 1
        request.tokens.append(token)
        request.last_token_at = now
        request.output.push(token)
        touched[request] = None
    outcome.finished = [(by_ticket[each.ticket], each) for each in batch.finished if each.ticket in by_ticket]
    return outcome


def unfence_frontend() -> None:
    """Take every token as it comes: whose, from whom and which one it is are believed; silence means nothing."""
    from frontend.dispatch import Dispatcher
    from frontend.fleet import Fleet
    from frontend.requests import Requests

    async def sleep(self: Any) -> None:
        await anyio.sleep_forever()

    Requests.take = take  # type: ignore[method-assign]
    Dispatcher._tick_forever = sleep  # type: ignore[method-assign]
    Fleet.hear = lambda self, worker, now: None  # type: ignore[assignment,method-assign]


def unfence_worker() -> None:
    """Send no heartbeat, keep no batch for those who may have missed it, look at no step."""
    from components.worker.canary import Canary
    from components.worker.load import INTERVAL_S, LoadReporter
    from components.worker.sent import Sent

    async def tell_events(self: Any) -> None:
        while True:
            self._sequences.publish_events()
            await anyio.sleep(INTERVAL_S)

    def count(self: Any, payload: bytes) -> None:
        self.next_seq += 1

    LoadReporter.run = tell_events  # type: ignore[method-assign]
    Sent.add = count  # type: ignore[method-assign]
    Canary.take = lambda self, step, now: step  # type: ignore[assignment,method-assign]
    Canary.look = lambda self, now, num_live: False  # type: ignore[assignment,method-assign]


if "frontend" in sys.orig_argv:
    unfence_frontend()
elif "worker" in sys.orig_argv:
    unfence_worker()
