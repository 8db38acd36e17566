"""Pure. The requests of a replay as their owner keeps them: fenced tokens, their times, and how each one ended."""

from array import array
from collections import Counter
from typing import Literal

import msgspec

from bus.messages.base import unpack_u32
from bus.messages.inference import Failed, GenerateJob, LatencyClass, Sampling, StepBatch, Stopping

MAX_ATTEMPTS = 5

GAPS_PER_S = 100_000
"""Gaps between tokens are counted in steps of 10 us: millions of them, exact enough, in a few kilobytes."""

GREEDY = Sampling(temperature=0.0)

Ending = Literal["finished", "refused", "failed"]


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the load."""

    at_s: float
    """Since the start of the replay."""
    prompt: bytes
    """Token ids, little-endian uint32."""
    num_output: int
    tenant: str = "default"
    latency_class: LatencyClass = "standard"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request went. Times are seconds from its arrival; zeros where it came to nothing."""

    ending: Ending
    at_s: float
    tenant: str
    latency_class: LatencyClass
    worker: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    ttft_s: float
    e2e_s: float
    num_attempts: int
    code: str = ""
    """Why it was refused or failed."""


class Open(msgspec.Struct, eq=False):
    """A request that has not ended."""

    number: int
    arrival: Arrival
    arrived_at: float
    attempt: int = 0
    ticket: int = 0
    is_accepted: bool = False
    worker: str = ""
    tokens: "array[int]" = msgspec.field(default_factory=lambda: array("I"))
    first_token_at: float = 0.0
    last_token_at: float = 0.0


class Book:
    """Live requests by ticket, outcomes, and the gaps between tokens. Times are those of the event loop."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.gaps: Counter[int] = Counter()
        """How often two tokens of a request came so many 1/`GAPS_PER_S` apart."""
        self._live: dict[int, Open] = {}
        self._num_tickets = 0
        self._num_opened = 0

    def __len__(self) -> int:
        """Count the requests that have not ended."""
        return len(self._live)

    def open(self, arrival: Arrival, now: float) -> Open:
        """Begin with a request that arrived at `now`."""
        request = Open(self._num_opened, arrival, now)
        self._num_opened += 1
        self._assign(request)
        return request

    def job(self, request: Open, frontend: str, model: str, unix_now: float) -> GenerateJob:
        """Return the present attempt of a request as the message that workers take."""
        arrival = request.arrival
        return GenerateJob(
            request_id=f"{frontend}-{request.number}",
            attempt=request.attempt,
            frontend=frontend,
            ticket=request.ticket,
            model=model,
            prompt=arrival.prompt,
            output=request.tokens.tobytes(),
            sampling=GREEDY,
            stopping=Stopping(max_tokens=arrival.num_output, ignore_eos=True),
            latency_class=arrival.latency_class,
            tenant=arrival.tenant,
            submitted_at=unix_now,
        )

    def take(self, batch: StepBatch, now: float) -> list[Open]:
        """Take a step of a worker; return the requests whose next attempt is to be sent.

        A token counts only if it is exactly the next one of a live ticket. Raises `Malformed` for broken columns.
        """
        live, gaps = self._live, self.gaps
        rows = zip(unpack_u32(batch.tickets), unpack_u32(batch.offsets), unpack_u32(batch.tokens), strict=False)
        for ticket, offset, token in rows:
            request = live.get(ticket)
            if request is None or offset != len(request.tokens):
                continue
            request.tokens.append(token)
            if offset:
                gaps[int((now - request.last_token_at) * GAPS_PER_S + 0.5)] += 1
            else:
                request.first_token_at = now
                request.worker = batch.worker
            request.last_token_at = now
        for accepted in batch.accepted:
            request = live.get(accepted.ticket)
            if request is not None:
                request.is_accepted = True
        for finished in batch.finished:
            request = live.pop(finished.ticket, None)
            if request is not None:
                self._end(request, now, "finished", cached_tokens=finished.cached_tokens)
        again = []
        for failed in batch.failed:
            request = live.pop(failed.ticket, None)
            if request is not None and self._may_go_on(request, now, failed):
                again.append(request)
        return again

    def reclaim(self) -> list[Open]:
        """Begin the next attempt of each request that no worker has accepted; return them."""
        waiting = [request for request in self._live.values() if not request.is_accepted]
        for request in waiting:
            del self._live[request.ticket]
            request.attempt += 1
            self._assign(request)
        return waiting

    def give_up(self, now: float, code: str) -> None:
        """End all that lives as failed."""
        for request in list(self._live.values()):
            self.fail(request, now, code)

    def fail(self, request: Open, now: float, code: str) -> None:
        """End a request as failed; nothing happens to one that has ended."""
        if self._live.pop(request.ticket, None) is not None:
            self._end(request, now, "failed", code=code)

    def _may_go_on(self, request: Open, now: float, failed: Failed) -> bool:
        if failed.is_retryable and request.attempt + 1 < MAX_ATTEMPTS:
            request.attempt += 1
            self._assign(request)
            return True
        self._end(request, now, "refused" if failed.code == "overloaded" else "failed", code=failed.code)
        return False

    def _assign(self, request: Open) -> None:
        request.ticket = self._num_tickets
        request.is_accepted = False
        self._num_tickets += 1
        self._live[request.ticket] = request

    def _end(self, request: Open, now: float, ending: Ending, *, cached_tokens: int = 0, code: str = "") -> None:
        arrival = request.arrival
        self.outcomes.append(
            Outcome(
                ending=ending,
                at_s=arrival.at_s,
                tenant=arrival.tenant,
                latency_class=arrival.latency_class,
                worker=request.worker,
                prompt_tokens=len(arrival.prompt) // 4,
                output_tokens=len(request.tokens),
                cached_tokens=cached_tokens,
                ttft_s=request.first_token_at - request.arrived_at if request.tokens else 0.0,
                e2e_s=now - request.arrived_at,
                num_attempts=request.attempt + 1,
                code=code,
            )
        )
