"""I/O. The attempts in the engine, from acceptance to their last row: the per-token path of a worker."""

import asyncio
import time
from collections.abc import Callable, Iterable

import anyio
import structlog

from bus.messages.inference import (
    Accepted,
    Embedding,
    Failed,
    Finished,
    GenerateJob,
    PromptLogprobs,
    TokenLogprobs,
    deadline_by_clock,
)
from bus.messages.kv import KvEvent
from bus.metrics import WORKER_PREFILL_TOKENS, WORKER_SEQUENCES, WORKER_STEP_SECONDS, WORKER_TOKENS
from components.engines import Ended, Engine, EngineRequest, Step
from components.worker.events import EventPublisher
from components.worker.exchange import Exchange, is_cut_short
from components.worker.ledger import Attempt, Ledger
from components.worker.outbox import Outbox
from components.worker.publish import Publisher
from components.worker.steps import StepSamples

TELL_AFTER_S = 0.005
"""What is not a token (accepted, refused) waits so long for a step to go with: a burst costs one message."""

FIRST_TOKEN_GAP_S = 0.004
"""Least time between two messages to a frontend when one brings a first token or an end, which somebody waits for."""

SLACK_S = 0.01
"""How much later than due tokens may go, if that lets them go with the next step: waking up costs more than sending."""

RETRY_AFTER_S = 0.02
"""When to try again after the bus took no more."""

log = structlog.get_logger()
_ended = {
    reason: WORKER_SEQUENCES.labels(reason)
    for reason in ("stop", "length", "abort", "cancelled", "expired", "handed_back", "handed_over")
}


class Sequences:
    """Ties the engine's keys to owners and tickets, and tells the owners.

    All calls are made in the event loop and none waits. `on_change` is called when sequences ended, once a step.
    """

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        events: EventPublisher,
        exchange: Exchange,
        on_change: Callable[[], None],
        *,
        publish_gap_s: float,
    ) -> None:
        """`publish_gap_s`: steps that follow each other faster than that share a message."""
        self.ledger = Ledger()
        self.publisher = publisher
        self.last_step_s = 0.0
        self.steps = StepSamples()
        self._loop = asyncio.get_running_loop()
        self._engine = engine
        self._events = events
        self._exchange = exchange
        self._on_change = on_change
        self._next_key = 0
        self._publish_gap_s = publish_gap_s
        self._flushed_at = 0.0
        self._due: tuple[float, asyncio.TimerHandle] | None = None
        """When to flush: uvloop's handles of timers that are due at once do not say."""
        self._block_events: list[KvEvent] = []
        self._became_idle = anyio.Event()

    @property
    def num_computing(self) -> int:
        """Attempts that wait for nothing but the engine."""
        if self._exchange.handovers.is_lending and not self._engine.load().running:
            return 0  # those that did not start may wait for the blocks that others read
        return sum(not self._exchange.is_waiting(key) for key in self.ledger.live)

    def next_key(self) -> int:
        self._next_key += 1
        return self._next_key

    def accept(self, job: GenerateJob, request: EngineRequest) -> None:
        """Put a request into the engine and tell its owner soon; raises what `Engine.submit` raises."""
        self._engine.submit(request)
        self._exchange.begin(job, request)
        outbox = self.publisher.outbox(job.frontend)
        offset = len(request.output)
        expiry = None
        deadline_at = deadline_by_clock(job, now := time.time())
        if deadline_at is not None:
            expiry = self._loop.call_later(max(0.0, deadline_at - now), self._expire, request.key)
        self.ledger.add(
            Attempt(
                key=request.key,
                ticket=job.ticket,
                outbox=outbox,
                offset=offset,
                request_id=job.request_id,
                num_prompt_tokens=len(request.prompt),
                first_offset=offset,
                accepted_at=self._loop.time(),
                expiry=expiry,
                handover_job=job if request.hold else None,
                is_prefilled=job.handover is not None,
            )
        )
        outbox.accepted.append(Accepted(job.ticket, source="" if job.handover is None else job.handover.worker))
        # What another worker died of may be the end of this one, and an engine that was idle begins with it at once:
        # its owner is to know who had it.
        is_first = len(self.ledger) == 1
        self.flush_soon(0.0 if job.attempt or is_first else TELL_AFTER_S)

    def on_step(self, step: Step) -> None:
        """Send the rows of one engine step to their owners: at once, or with those of the next where steps are fast."""
        now = self._loop.time()
        is_awaited = bool(step.ended)
        if step.logprobs:
            is_awaited |= self._append_with_logprobs(step, now)
        else:
            live = self.ledger.live
            for key, token in zip(step.keys, step.tokens, strict=True):
                attempt = live[key]
                outbox = attempt.outbox
                outbox.tickets.append(attempt.ticket)
                outbox.offsets.append(attempt.offset)
                outbox.tokens.append(token)
                attempt.offset += 1
                if not attempt.first_token_at:
                    self._note_first_token(attempt, now)
                    is_awaited = True
        for rows in step.prompts:
            attempt = self.ledger.live[rows.key]
            attempt.outbox.prompt_logprobs.append(
                PromptLogprobs(attempt.ticket, rows.start, rows.logprobs, rows.top_ids, rows.top_logprobs)
            )
        for key, cached_tokens in step.cached:
            attempt = self.ledger.live[key]
            if attempt.is_prefilled:
                continue  # what came from elsewhere was not cached
            attempt.outbox.accepted.append(Accepted(attempt.ticket, cached_tokens))
        for vector in step.vectors:
            attempt = self.ledger.live[vector.key]
            attempt.outbox.embeddings.append(Embedding(attempt.ticket, vector.data))
        handed: list[Attempt] = []
        for ended in step.ended:
            moving = self.ledger.live.get(ended.key)
            if moving is not None and moving.handover_job is not None and self._is_cut_short(moving, ended):
                handed.append(moving)
                continue
            attempt = self._end(ended.key, now)
            if ended.error:
                attempt.outbox.failed.append(Failed(attempt.ticket, "invalid_request", ended.error[:500], False))
            else:
                attempt.outbox.finished.append(
                    Finished(
                        attempt.ticket,
                        ended.num_tokens,
                        ended.reason,
                        0 if attempt.is_prefilled else ended.cached_tokens,
                    )
                )
            _ended[ended.reason].inc()
            log.debug(
                "sequence.finished",
                request_id=attempt.request_id,
                reason=ended.reason,
                prompt_tokens=attempt.num_prompt_tokens,
                tokens=attempt.offset - attempt.first_offset,
                cached_tokens=ended.cached_tokens,
                queue_s=round((attempt.first_token_at or now) - attempt.accepted_at, 4),
                duration_s=round(now - attempt.accepted_at, 4),
            )
        self._block_events += self._engine.take_events()
        if handed:
            self._hand_over(handed, step)
        self._flush_after(now, FIRST_TOKEN_GAP_S if is_awaited else self._publish_gap_s)
        self.last_step_s = step.stats.duration_s
        self.steps.add(step.stats)
        WORKER_STEP_SECONDS.observe(step.stats.duration_s)
        WORKER_TOKENS.inc(len(step.tokens))
        WORKER_PREFILL_TOKENS.inc(step.stats.prefill_tokens)
        if step.ended:
            self._on_change()

    def end_handed(self, key: int, is_taken: bool) -> None:
        """A handover is over; if nobody took it, the owner is to try again, unless it hears from somebody else now."""
        attempt = self.ledger.end(key, self._loop.time())
        if attempt is None:
            return
        _ended["handed_over"].inc()
        self._note_end(attempt)
        if not is_taken:
            message = "no worker took the prefilled sequence in time"
            attempt.outbox.failed.append(Failed(attempt.ticket, "handover_lost", message, True))
            self.flush_soon()
        self._on_change()

    def take_back(self, job: GenerateJob) -> bool:
        """Let a sequence go on here that was handed over and found nobody else; False: that is over."""
        attempt = self.ledger.find(job.frontend, job.ticket)
        if attempt is None or not self._exchange.handovers.is_leased(attempt.key):
            return False
        self._end(attempt.key, self._loop.time())
        _ended["handed_over"].inc()
        self._exchange.handovers.take_back(attempt.key)
        return True

    def finish_at_once(self, job: GenerateJob, finished: Finished) -> None:
        """Tell the owner of a job that earlier attempts completed already."""
        self._claim(job).finished.append(finished)
        self.flush_soon()

    def refuse(self, job: GenerateJob, code: str, message: str, *, is_retryable: bool) -> None:
        """Tell the owner that its job does not start here."""
        failed = Failed(job.ticket, code, message[:500], is_retryable)
        self._claim(job).failed.append(failed)
        self.flush_soon()

    def _claim(self, job: GenerateJob) -> Outbox:
        """Return where to speak of a job; its owner listens to who prefilled it until another worker has it."""
        outbox = self.publisher.outbox(job.frontend)
        if job.handover is not None:
            outbox.accepted.append(Accepted(job.ticket, source=job.handover.worker))
        return outbox

    def cancel(self, owner: str, tickets: Iterable[int]) -> None:
        """Stop working on these tickets of `owner`, untold; those that are not here never start."""
        now = self._loop.time()
        for ticket in tickets:
            attempt = self.ledger.cancel(owner, ticket, now)
            if attempt is not None:
                self._abort(attempt, "cancelled")
        self._on_change()

    def abandon(self, owner: str) -> int:
        """Stop working for an owner that is gone; return how many attempts that ended."""
        attempts = self.ledger.of_owner(owner)
        self.cancel(owner, [attempt.ticket for attempt in attempts])
        self.publisher.forget(owner)
        return len(attempts)

    def hand_back(self, code: str, message: str, *, stepped_at: float | None = None) -> int:
        """Give every attempt back to its owner for another worker; return how many there were.

        With `stepped_at`, the end of the last step, those that came too late for the one after it, in which the engine
        died, are told so: nobody is to blame them for it.
        """
        now = self._loop.time()
        attempts = list(self.ledger.live.values())
        began_at = now
        if stepped_at is not None:
            began_at = max(stepped_at, min((attempt.accepted_at for attempt in attempts), default=now))
        for attempt in attempts:
            self.ledger.end(attempt.key, now)
            self._abort(attempt, "handed_back")
            is_late = attempt.accepted_at > began_at + TELL_AFTER_S
            attempt.outbox.failed.append(Failed(attempt.ticket, "draining" if is_late else code, message, True))
        self.flush()
        self._on_change()
        return len(attempts)

    async def wait_idle(self) -> None:
        """Wait until no attempt is live."""
        while self.ledger.live:
            self._became_idle = anyio.Event()
            await self._became_idle.wait()

    def flush_soon(self, delay_s: float = TELL_AFTER_S) -> None:
        """Flush within `delay_s`."""
        at = self._loop.time() + delay_s
        if self._due is not None:
            due_at, timer = self._due
            if due_at <= at:
                return
            timer.cancel()
        self._due = at, self._loop.call_later(delay_s, self.flush)

    def flush(self) -> bool:
        """Send what waits; what the bus does not take is tried again, and given up when it becomes too much."""
        if self._due is not None:
            self._due[1].cancel()
            self._due = None
        self._flushed_at = self._loop.time()
        self.publish_events()
        if self.publisher.flush():
            return True
        for outbox in list(self.publisher.outboxes.values()):
            if outbox.is_overfull:
                self._give_up(outbox.frontend)
        self.flush_soon(RETRY_AFTER_S)
        return False

    def publish_events(self) -> None:
        """Tell which blocks came and went; in tiers they do so between steps as well."""
        self._block_events += self._engine.take_events()
        if self._block_events:
            self._events.publish(self._block_events)
            self._block_events = []

    def _flush_after(self, now: float, gap_s: float) -> None:
        """Flush if `gap_s` have passed since the last time, else with the step after that, or without one soon."""
        wait_s = self._flushed_at + min(gap_s, self._publish_gap_s) - now
        if wait_s <= 0:
            self.flush()
        else:
            self.flush_soon(wait_s if gap_s < self._publish_gap_s else wait_s + SLACK_S)

    def _give_up(self, owner: str) -> None:
        outbox = self.publisher.outbox(owner)
        attempts = self.ledger.of_owner(owner)
        tickets = outbox.tickets_inside() | {attempt.ticket for attempt in attempts}
        self.cancel(owner, [attempt.ticket for attempt in attempts])
        outbox.give_up(tickets, "bus_unavailable", "the worker could not send what it computed")
        log.warning("sequences.given_up", frontend=owner, num_sequences=len(tickets))

    def _append_with_logprobs(self, step: Step, now: float) -> bool:
        """Add all rows, some with log-probabilities; say whether one was a first token."""
        has_first = False
        by_row = {entry.row: entry for entry in step.logprobs}
        for row, (key, token) in enumerate(zip(step.keys, step.tokens, strict=True)):
            attempt = self.ledger.live[key]
            outbox = attempt.outbox
            outbox.append(attempt.ticket, attempt.offset, token)
            if entry := by_row.get(row):
                outbox.add_logprobs(
                    TokenLogprobs(attempt.ticket, attempt.offset, entry.logprob, entry.top_ids, entry.top_logprobs)
                )
            attempt.offset += 1
            if not attempt.first_token_at:
                self._note_first_token(attempt, now)
                has_first = True
        return has_first

    def _note_first_token(self, attempt: Attempt, now: float) -> None:
        attempt.first_token_at = now
        if attempt.is_prefilled:
            self._exchange.stop(attempt.key)

    def _is_cut_short(self, attempt: Attempt, ended: Ended) -> bool:
        assert attempt.handover_job is not None
        return is_cut_short(attempt.handover_job, ended, attempt.num_prompt_tokens, self._engine.spec.max_model_len)

    def _hand_over(self, attempts: list[Attempt], step: Step) -> None:
        """Send sequences on, behind their first tokens: these are with the broker before anybody goes on."""
        self.flush()
        tokens = dict(zip(step.keys, step.tokens, strict=True))
        for attempt in attempts:
            self._exchange.handovers.send(attempt.key, tokens[attempt.key])

    def _end(self, key: int, now: float) -> Attempt:
        attempt = self.ledger.end(key, now)
        if attempt is None:
            raise RuntimeError(f"the engine ended sequence {key}, which does not live here")
        self._note_end(attempt)
        return attempt

    def _abort(self, attempt: Attempt, outcome: str) -> None:
        self._engine.abort(attempt.key)
        _ended[outcome].inc()
        self._note_end(attempt)

    def _expire(self, key: int) -> None:
        """Stop working on an attempt whose deadline passed: nobody else may do it either."""
        attempt = self.ledger.end(key, self._loop.time())
        if attempt is not None:
            self._abort(attempt, "expired")
            message = f"the deadline passed after {attempt.offset} output tokens"
            attempt.outbox.failed.append(Failed(attempt.ticket, "deadline_passed", message, False))
            self.flush_soon()
            self._on_change()

    def _note_end(self, attempt: Attempt) -> None:
        if attempt.handover_job is not None or attempt.is_prefilled:
            self._exchange.stop(attempt.key)
        if attempt.expiry is not None:
            attempt.expiry.cancel()
        if not self.ledger.live:
            self._became_idle.set()
