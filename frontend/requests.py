"""Pure. The owner's state: which attempt of each request is the live one, and which token comes next.

Acks of the broker are not fenced and workers may come back from the dead, so "each token once" is decided here alone:
a token counts if its ticket is the live attempt's, its worker the first that spoke of this ticket (or the one that took
it over from there, as its acceptance says), and its offset exactly the next one. Everything else is dropped, counted,
and answered with `Cancel` (unknown tickets) or with another attempt (gaps that are not filled).
"""

from collections.abc import Iterable, Iterator

import msgspec

from bus.errors import Malformed
from bus.messages.inference import Failed, Finished, StepBatch
from bus.metrics import DoublingHistogram
from frontend.errors import TooManyRequests
from frontend.request import Request

LOST_S = 0.8
"""For how long a batch that did not come is waited for: it is asked for three times."""
MAX_ALL_ATTEMPTS = 200
"""Of one request, also when nobody is to blame for any of them."""


class StepOutcome(msgspec.Struct, gc=False):
    """What a step batch asks of the owner, beside the tokens that went to their outputs."""

    touched: dict[Request, None]
    """Got tokens, and their outputs are to be flushed."""
    finished: list[tuple[Request, Finished]]
    failed: list[tuple[Request, Failed]]
    gaps: dict[int, Request]
    """By ticket: a token is missing in these."""
    unknown: set[int]
    """Tickets that belong to no live attempt: the worker works for nobody."""
    missing_seq: int | None = None
    """Number of the first of the worker's batches that did not come and may still come; None: there is none."""


class _Behind(msgspec.Struct):
    """One of a worker's batches did not come, and others did."""

    since: float
    last_seq: int
    """The last one that came."""


class Requests:
    """All requests of this frontend, by the ticket of their live attempt."""

    def __init__(
        self, *, max_requests: int, max_attempts: int, gaps: DoublingHistogram, tickets: Iterator[int]
    ) -> None:
        """`gaps` counts the times between tokens; `tickets` never end."""
        self._max_requests = max_requests
        self._max_attempts = max_attempts
        self._by_ticket: dict[int, Request] = {}
        self._tickets = tickets
        self._next_seq: dict[str, int] = {}
        """By worker: the first batch that did not come. Later ones may have come: they come again when it does."""
        self._behind: dict[str, _Behind] = {}
        """Workers of which a later batch came before that one."""
        self.num_duplicates = 0
        """Tokens dropped because their offset was taken before."""
        self.num_stale = 0
        """Tokens dropped because their ticket is nobody's."""
        self.num_gaps = 0
        self._gaps = gaps

    def __len__(self) -> int:
        return len(self._by_ticket)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._by_ticket.values()))

    def open(self, request: Request, now: float) -> None:
        """Give the request its first ticket; raise `TooManyRequests` when there are `max_requests`."""
        if len(self._by_ticket) >= self._max_requests:
            raise TooManyRequests(f"{self._max_requests} requests are in flight here; try again soon.", delay_s=1.0)
        request.opened_at = now
        request.is_live = True
        self._issue(request, now)

    def close(self, request: Request) -> None:
        """Forget the request; tokens that still come for it are stale. Closing twice is closing once."""
        if request.is_live:
            request.is_live = False
            del self._by_ticket[request.ticket]

    def retry(self, request: Request, now: float, *, is_fault: bool = True) -> bool:
        """Begin another attempt under a new ticket; False when there were as many as there may be.

        `max_attempts` bounds those that ended through a fault: a broker that comes and goes is not the request's.
        """
        num_faults = request.num_faults + is_fault
        if num_faults >= self._max_attempts or request.attempt + 1 >= MAX_ALL_ATTEMPTS:
            return False
        request.num_faults = num_faults
        del self._by_ticket[request.ticket]
        request.attempt += 1
        request.worker = request.prefilled_by = ""
        request.suspect_at = 0.0
        self._issue(request, now)
        return True

    def _issue(self, request: Request, now: float) -> None:
        ticket = next(self._tickets)
        while ticket in self._by_ticket:
            ticket = next(self._tickets)
        request.ticket = ticket
        request.dispatched_at = now
        self._by_ticket[ticket] = request

    def take(self, batch: StepBatch, now: float) -> StepOutcome:
        """Push the tokens of a batch that are next in their sequences; raise `Malformed` if its columns do not fit."""
        missing_seq = self._follow(batch, now)
        outcome = StepOutcome({}, [], [], {}, set(), missing_seq)
        by_ticket = self._by_ticket
        for accepted in batch.accepted:
            request = by_ticket.get(accepted.ticket)
            if request is not None and accepted.source and request.worker == accepted.source:
                # It was prefilled there and goes on here: nobody but its worker can leave a ticket to another one.
                request.worker, request.prefilled_by = batch.worker, accepted.source
            if request is None or not _has(batch.worker, request):
                outcome.unknown.add(accepted.ticket)
            elif accepted.cached_tokens > request.cached_tokens:
                request.cached_tokens = accepted.cached_tokens
        if batch.tickets:
            self._take_rows(batch, now, outcome)
        for logprobs in batch.logprobs:
            request = by_ticket.get(logprobs.ticket)
            if request is not None and request.worker == batch.worker and logprobs.offset < request.num_tokens:
                request.output.push_logprobs(logprobs)
        for rows in batch.prompt_logprobs:
            request = by_ticket.get(rows.ticket)
            if request is not None and _has(batch.worker, request):
                request.output.push_logprobs(rows)
        for embedding in batch.embeddings:
            request = by_ticket.get(embedding.ticket)
            if request is not None and _has(batch.worker, request) and len(embedding.vector) % 4 == 0:
                request.vector = embedding.vector
        for finished in batch.finished:
            request = by_ticket.get(finished.ticket)
            if request is None or not _has(batch.worker, request):
                continue
            lacks_vector = request.generation.task == "embed" and not request.vector
            if finished.num_tokens != request.num_tokens or lacks_vector:
                self.num_gaps += 1
                outcome.gaps[request.ticket] = request
                continue
            request.cached_tokens = max(request.cached_tokens, finished.cached_tokens)
            outcome.finished.append((request, finished))
        for failed in batch.failed:
            request = by_ticket.get(failed.ticket)
            if request is not None and request.worker in ("", batch.worker):
                outcome.failed.append((request, failed))
        return outcome

    def _take_rows(self, batch: StepBatch, now: float, outcome: StepOutcome) -> None:
        """Walk the columns: this is what every token costs, so nothing here is called twice for one token."""
        tickets, offsets, tokens = column(batch.tickets), column(batch.offsets), column(batch.tokens)
        if not len(tickets) == len(offsets) == len(tokens):
            raise Malformed(f"columns of {len(tickets)}, {len(offsets)} and {len(tokens)} rows")
        get = self._by_ticket.get
        touched = outcome.touched
        gaps = self._gaps
        counts, scale = gaps.counts, gaps.SCALE
        worker = batch.worker
        for ticket, offset, token in zip(tickets, offsets, tokens, strict=True):
            request = get(ticket)
            if request is None or (request.worker != worker and not _has(worker, request)):
                self.num_stale += 1
                outcome.unknown.add(ticket)
            elif offset == request.num_tokens:
                request.num_tokens = offset + 1
                request.tokens.append(token)
                if offset:
                    gap = now - request.last_token_at
                    counts[int(gap * scale).bit_length()] += 1
                    gaps.sum += gap
                else:
                    request.first_token_at = now
                request.last_token_at = now
                request.output.push(token)
                touched[request] = None
            elif offset < request.num_tokens:
                self.num_duplicates += 1
            elif ticket not in outcome.gaps:
                self.num_gaps += 1
                outcome.gaps[ticket] = request

    def _follow(self, batch: StepBatch, now: float) -> int | None:
        """Notice missing batches by their numbers: what was in them may have been the end of a request.

        A batch that came before may come again: its worker could not know whether it had arrived.
        """
        worker, seq = batch.worker, batch.seq
        expected = self._next_seq.get(worker, seq)
        behind = self._behind.get(worker)
        if seq == expected:
            self._next_seq[worker] = seq + 1
            if behind is not None and seq >= behind.last_seq:
                del self._behind[worker]
            return None
        if 0 < seq < expected:
            return None
        if behind is None:
            self.suspect(now, worker)
            behind = self._behind[worker] = _Behind(now, seq)
        if not seq or now - behind.since > LOST_S:
            # It may have had the end of a request that was seen to live since its loss was noticed.
            self.suspect(now, worker)
            self._next_seq[worker] = seq + 1
            del self._behind[worker]
            return None
        behind.last_seq = max(behind.last_seq, seq)
        return expected

    def next_seqs(self, workers: Iterable[str]) -> dict[str, int]:
        """Return the number of the next batch of each of these workers; 0 for one that was not heard yet."""
        return {worker: self._next_seq.get(worker, 0) for worker in workers}

    def workers(self) -> set[str]:
        """Return the workers that have a request."""
        return {request.worker for request in self._by_ticket.values() if request.worker}

    def quiet(self, before: float) -> list[Request]:
        """Return requests that were dispatched before that time, and had no token since then."""
        return [r for r in self._by_ticket.values() if r.dispatched_at < before and r.last_token_at < before]

    def suspect(self, now: float, worker: str = "") -> None:
        """Messages (of one worker, or of all) may be lost: requests that show no life after `now` are overdue.

        One that has shown none since it was suspected before is so since then.
        """
        for request in self._by_ticket.values():
            if request.worker and worker in ("", request.worker) and request.last_token_at >= request.suspect_at:
                request.suspect_at = now

    def overdue(self, now: float, patience_s: float) -> list[Request]:
        """Return suspected requests that had no token for `patience_s` since."""
        return [
            request
            for request in self._by_ticket.values()
            if request.suspect_at and request.last_token_at < request.suspect_at < now - patience_s
        ]

    def expired(self, now: float) -> list[Request]:
        """Return requests whose time is over."""
        return [request for request in self._by_ticket.values() if request.expires_at < now]

    def unaccepted(self, *, before: float = float("inf")) -> list[Request]:
        """Return requests that were dispatched before that time and that no worker accepted."""
        return [r for r in self._by_ticket.values() if not r.worker and r.dispatched_at < before]

    def untaken(self, worker: str, since: float) -> list[Request]:
        """Return what waits for this worker, which takes nothing now: in its lane, or given to it since then, maybe."""
        return [
            r
            for r in self._by_ticket.values()
            if not r.worker and not r.is_held and (r.dispatched_at >= since or r.addressee == worker)
        ]

    def forget(self, sender: str) -> None:
        """Forget which batches came from a worker or a router that is gone."""
        self._next_seq.pop(sender, None)
        self._behind.pop(sender, None)

    def running_on(self, workers: Iterable[str]) -> list[Request]:
        """Return the requests that these workers accepted, and forget the workers' batch numbers."""
        gone = set(workers)
        for worker in gone:
            self.forget(worker)
        return [request for request in self._by_ticket.values() if request.worker in gone]


def _has(worker: str, request: Request) -> bool:
    """Whether the worker has the present attempt: the first one that speaks of it does, should a job reach two."""
    request.worker = request.worker or worker
    return request.worker == worker


def column(data: bytes) -> memoryview:
    """View packed uint32 as ints, without a copy; raise `Malformed` when the length is no multiple of four."""
    try:
        return memoryview(data).cast("I")
    except TypeError as error:
        raise Malformed(f"{len(data)} bytes are no column of uint32") from error
