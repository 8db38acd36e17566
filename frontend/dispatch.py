"""I/O. Between the owner's state and the bus: jobs go out, step batches come in, lost attempts are made again."""

import asyncio
import os
import time
from collections.abc import Iterable
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup

from bus import metrics
from bus.codec import encode
from bus.config import FrontendConfig
from bus.dead import dead_letter
from bus.errors import (
    BusUnavailable,
    BuswayError,
    DeadlinePassed,
    EngineDied,
    InvalidRequest,
    Malformed,
    NoWorker,
    Retryable,
)
from bus.gone import watch_gone
from bus.messages.fleet import RouterCard, WorkerCard, WorkerLoad
from bus.messages.inference import Failed, FinishReason, StepBatch
from bus.protocol import AppendAck, Bus, Incoming
from bus.registry import watch_cards
from bus.subjects import ANY_WORKER, slug
from bus.typed import subscribe_typed
from frontend.admission import Admission
from frontend.books import Books
from frontend.cancels import Cancels
from frontend.errors import GenerationFailed, ShuttingDown
from frontend.fleet import Fleet
from frontend.missing import MissingTokens
from frontend.request import Request
from frontend.requests import Requests
from frontend.routers import Routers
from frontend.suspects import MAX_DEATHS, Suspects
from frontend.tickets import make_tickets

TICK_S = 0.25
QUIET_S = 1.0
"""A request without a token for so long waits in a queue, or for a message that is lost."""
LATE_S = 0.5
"""How long after its deadline a request is given up here, if nobody said so before who has it."""
STALL_S = 1.0
"""A tick that comes so late says that this process stood still, and that silence is no proof of anything."""
SLACK_S = 0.01
"""How much later than due a stream may be written, if that lets it go with the next step's tokens."""
APPEND_TIMEOUT_S = 3.0
"""A broker under a wave of requests, or just restarted, takes that long at most; then the client is told."""
FIRST_RETRY_S = 0.05
MAX_RETRY_S = 1.0
STALE_JOB_S = 1.5
"""What nobody accepted for so long waits in the queue; what is younger may lie with a worker that died or stalled."""

OVERLOADED = "overloaded"
"""A router refuses a request that would wait for too long."""

_BLAMELESS = frozenset({"untaken", "draining", "bus_unavailable", "broker_lost", "router_lost", "gap", OVERLOADED})
"""Reasons for another attempt that say nothing against the request."""

log = structlog.get_logger()


class Dispatcher:
    """Owns the requests of this frontend. All of it runs in the event loop; only `run` waits."""

    def __init__(
        self, bus: Bus, frontend: str, config: FrontendConfig, *, fleet: Fleet, books: Books, tasks: TaskGroup
    ) -> None:
        """`tasks` runs the attempts after the first ones."""
        self._bus = bus
        self._frontend = frontend
        self._ttl_s = max(1, round(config.accept_timeout_s))
        self._config = config
        self._fleet = fleet
        self._books = books
        self._tasks = tasks
        self._routers = Routers()
        self._cancels = Cancels(bus, frontend)
        self._missing = MissingTokens(bus, frontend, lambda request: self._retry(request, "gap", time.monotonic()))
        self._suspects = Suspects()
        self._admission = Admission(config.max_queue_s)
        self._num_shown = (0, 0)
        self._late: dict[Request, None] = {}
        self._late_timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self.requests = Requests(
            max_requests=config.max_requests,
            max_attempts=config.max_attempts,
            gaps=metrics.FRONTEND_ITL,
            tickets=make_tickets(os.urandom(16)),
        )
        metrics.FRONTEND_IN_FLIGHT.set_function(lambda: len(self.requests))
        self.is_draining = False

    async def run(self) -> None:
        """Listen to workers until cancelled."""
        subjects = self._bus.subjects
        outs = subscribe_typed(self._bus, subjects.out(self._frontend, "*"), StepBatch, self._on_batch)
        loads = subscribe_typed(self._bus, subjects.load("*", "*"), WorkerLoad, self._on_load)
        self._bus.on_reconnect(self._on_reconnect)
        try:
            async with (
                watch_cards(self._bus, "router", RouterCard, self._on_router),
                watch_cards(self._bus, "worker", WorkerCard, self._on_worker),
            ):
                with watch_gone(self._bus, self._on_gone):
                    await self._tick_forever()
        finally:
            outs.unsubscribe()
            loads.unsubscribe()

    def submit(self, request: Request) -> None:
        """Publish the first attempt; raise what the client is to be told.

        What the broker says against it, later, ends the request's output.
        """
        if self.is_draining:
            raise ShuttingDown("This frontend is shutting down.", delay_s=1.0)
        if not self._bus.is_connected:
            raise BusUnavailable("The message bus is not reachable at present.", delay_s=1.0)
        generation, now = request.generation, time.monotonic()
        self._admission.check(generation.model_slug, generation.latency_class)
        if generation.deadline_at is not None:
            request.expires_at = now + generation.deadline_at - time.time()
        self.requests.open(request, now)
        try:
            subject, payload = self._address(request)
            self._bus.append_soon(
                subject,
                payload,
                partial(self._submitted, request, request.ticket),
                msg_id=f"{request.request_id}:{request.attempt}",
                ttl_s=self._ttl_s,
                timeout_s=APPEND_TIMEOUT_S,
            )
        except BuswayError:
            self.requests.close(request)
            raise

    def _submitted(self, request: Request, ticket: int, answer: AppendAck | BuswayError) -> None:
        """The broker has the first attempt, or not."""
        if not isinstance(answer, BuswayError):
            return
        # After a reconnect, another attempt may be on its way already; and what got no answer may have arrived.
        if request.is_live and request.ticket == ticket and not request.worker:
            self.requests.close(request)
            request.output.fail(answer)
        else:
            log.debug("request.append_failed", request_id=request.request_id, reason=str(answer))

    def cancel(self, request: Request) -> None:
        """The client wants no more: free the worker's slot. Cancelling what has ended does nothing."""
        if request.is_live:
            now = time.monotonic()
            if request.worker:
                self._cancels.tell(request.worker, (request.ticket,), now)
            else:
                self._cancels.tell_all((request.ticket,))
            self.requests.close(request)
            self._books.cancelled(request, now)

    async def _append(self, request: Request) -> None:
        """Publish the present attempt."""
        subject, payload = self._address(request)
        msg_id = f"{request.request_id}:{request.attempt}"
        await self._bus.append(subject, payload, msg_id=msg_id, ttl_s=self._ttl_s, timeout_s=APPEND_TIMEOUT_S)

    def _address(self, request: Request) -> tuple[str, bytes]:
        """Return the present attempt, and where to: to the routers while there are any, else to a free worker."""
        generation, subjects = request.generation, self._bus.subjects
        payload = encode(request.job(self._frontend, time.time()))
        if len(payload) > self._bus.max_payload_bytes:
            raise InvalidRequest(f"The request takes {len(payload)} bytes on the bus, more than it carries.")
        model, latency_class = generation.model_slug, generation.latency_class
        request.is_routed = self._routers.take(generation.model)
        request.addressee = "" if request.is_routed else self._fleet.detour(model)
        if request.is_routed:
            subject = subjects.req(model, latency_class, slug(generation.tenant))
        else:
            subject = subjects.work(model, "both", request.addressee or ANY_WORKER, latency_class)
        return subject, payload

    def _on_batch(self, batch: StepBatch, incoming: Incoming) -> None:
        """Take a step of a worker: the path of every token."""
        worker = batch.worker
        if not incoming.subject.endswith(f".{worker}"):
            metrics.MALFORMED_MESSAGES.labels(family="out").inc()
            return
        now = time.monotonic()
        if batch.tickets or batch.accepted or batch.finished:
            # Refusals alone may come from a router, which is no worker to be missed when it is silent.
            self._fleet.hear(worker, now)
        try:
            outcome = self.requests.take(batch, now)
        except Malformed:
            metrics.MALFORMED_MESSAGES.labels(family="out").inc()
            return
        for request, finished in outcome.finished:
            if finished.reason == "abort":
                self._retry(request, "aborted", now)
            else:
                self._finish(request, finished.reason)
        for request in outcome.touched:
            if now >= request.flush_at:
                self._late.pop(request, None)
                self._flush(request, now)
            else:
                self._late[request] = None
        if self._late and self._late_timer is None:
            wait_s = self._config.write_gap_s + SLACK_S
            self._late_timer = asyncio.get_running_loop().call_later(wait_s, self._flush_late)
        if outcome.missing_seq is not None:
            self._missing.ask(worker, outcome.missing_seq, now)
        for request in outcome.gaps.values():
            self._missing.wait(request)
        if outcome.failed:
            self._take_failures(outcome.failed, now)
        if outcome.unknown and outcome.missing_seq is None:
            # A batch that is missing may say whose they are: that their sequences go on at this worker.
            self._cancels.tell(worker, outcome.unknown, now)
        if self._suspects:
            self._try_suspect()

    def _take_failures(self, failures: list[tuple[Request, Failed]], now: float) -> None:
        died = [request for request, failed in failures if failed.code == EngineDied.code]
        self._lose(died, now)
        for request, failed in failures:
            if failed.code == OVERLOADED and request.num_tokens:
                # Refusing is for those who wait: half an answer is nothing to come back for later.
                self._retry(request, OVERLOADED, now, delay_s=MAX_RETRY_S)
            elif not failed.is_retryable:
                self._fail(request, GenerationFailed(failed.message, code=failed.code, delay_s=failed.retry_after_s))
            elif failed.code in _BLAMELESS:
                self._retry(request, failed.code, now)
            elif failed.code != EngineDied.code:
                delay_s = min(MAX_RETRY_S, FIRST_RETRY_S * 2 ** min(request.num_faults, 10))
                self._retry(request, "failed", now, delay_s=delay_s)

    def _flush(self, request: Request, now: float) -> None:
        request.flush_at = now + self._config.write_gap_s
        if request.output.flush() and request.is_live:
            self._cancels.tell(request.worker, (request.ticket,), now)
            self._finish(request, "stop")

    def _flush_late(self) -> None:
        """Write what came too soon after the last write, for all streams at once."""
        now = time.monotonic()
        late, self._late, self._late_timer = self._late, {}, None
        for request in late:
            if request.is_live:
                self._flush(request, now)

    def _on_load(self, load: WorkerLoad, incoming: Incoming) -> None:
        if incoming.subject.endswith(f".{load.worker}"):
            self._fleet.report(load.worker, load.waiting, time.monotonic())

    def _on_worker(self, worker: str, card: WorkerCard | None) -> None:
        if card is None:
            self._fleet.leave(worker)
        else:
            self._fleet.arrive(worker, card, time.monotonic())

    def _on_gone(self, name: str) -> None:
        """A process lost its connection: what a worker ran goes on elsewhere at once, without waiting for silence."""
        now = time.monotonic()
        was_serving = self._fleet.doubt(name)
        lost = self.requests.running_on([name])
        if lost:
            log.warning("worker.disconnected", worker=name, num_requests=len(lost))
        self._send_untaken_again(name, now - STALE_JOB_S if was_serving else now, now)
        self._lose(lost, now)
        self._lose_router(name, now)

    def _lose(self, lost: list[Request], now: float) -> None:
        """A worker died with these in it: they go on elsewhere, but for what kills whoever takes it."""
        guilty = self._suspects.blame(lost)
        for request in lost:
            if request is guilty:
                self._bury(request)
            else:
                self._retry(request, "worker_lost", now)

    def _bury(self, request: Request) -> None:
        """Give up a request that kills workers; a dead letter keeps its job for whoever looks into it."""
        message = (
            f"{MAX_DEATHS} workers died while they computed the next token of this request: it goes to no third one. "
            f"Look for request {request.request_id} in {self._bus.subjects.dead('work')}."
        )
        job = request.job(self._frontend, time.time())
        subject = self._bus.subjects.work(request.generation.model_slug, "both", ANY_WORKER, job.latency_class)
        letter = dead_letter(subject, encode(job), "request_quarantined", message, died_at=time.time())
        try:
            self._bus.publish(self._bus.subjects.dead("work"), letter)
        except BusUnavailable:
            pass
        log.error("request.quarantined", request_id=request.request_id, num_tokens=request.num_tokens)
        self._fail(request, GenerationFailed(message, code="request_quarantined"))

    def _try_suspect(self) -> None:
        request = self._suspects.next_trial()
        if request is not None:
            self._tasks.start_soon(self._dispatch_again, request, request.ticket, 0.0)

    def _on_router(self, router: str, card: RouterCard | None) -> None:
        if card is not None:
            self._routers.arrive(router, card)
            return
        self._lose_router(router, time.monotonic())

    def _lose_router(self, router: str, now: float) -> None:
        """Unless another router is left, what this one held goes to the shared lane."""
        self.requests.forget(router)
        if not self._routers.leave(router):
            return
        for request in self.requests.unaccepted():
            if request.is_routed and not request.is_held and not self._routers.take(request.generation.model):
                self._retry(request, "router_lost", now)

    async def _on_reconnect(self) -> None:
        """What was in flight when the connection broke may be lost, in both directions."""
        now = time.monotonic()
        self._fleet.excuse_silence(now)
        self.requests.suspect(now)
        self._ask_again(self.requests.workers(), now)
        for request in self.requests.unaccepted():
            if not request.is_held:
                self._retry(request, "broker_lost", now)

    async def _tick_forever(self) -> None:
        ticked_at = time.monotonic()
        while True:
            await anyio.sleep(TICK_S)
            now = time.monotonic()
            if now - ticked_at > STALL_S or not self._bus.is_connected:
                self._fleet.excuse_silence(now)
            ticked_at = now
            self._tick(now)

    def _tick(self, now: float) -> None:
        for worker in self._fleet.find_stalled(now):
            self._leave_stalled(worker, now)
        dead = self._fleet.bury_silent(now)
        if dead:
            lost = self.requests.running_on(dead)
            log.warning("worker.lost", workers=dead, num_requests=len(lost))
            self._lose(lost, now)
        if self._suspects:
            self._try_suspect()
        if now - self._looked_at >= QUIET_S:
            self._looked_at = now
            self._look_for_quiet(now)
        for request in self.requests.overdue(now, self._config.worker_timeout_s):
            self._retry(request, "silent", now)
        for request in self.requests.expired(now - LATE_S):
            if request.worker:
                self._cancels.tell(request.worker, (request.ticket,), now)
            self._fail(request, DeadlinePassed(f"The deadline passed after {request.num_tokens} output tokens."))
        waiting = self.requests.unaccepted()
        # Routers know better what waits with them, and for whom.
        self._admission.update((request for request in waiting if not request.is_routed), now)
        for request in waiting:
            if now - request.dispatched_at > self._config.accept_timeout_s:
                message = f"No worker took the request within {self._config.accept_timeout_s:g} s."
                self._fail(request, NoWorker(message))
        self._show_drops()

    def _look_for_quiet(self, now: float) -> None:
        """What a worker sent last may be lost, and no later message tells: who is quiet for long is asked."""
        quiet = self.requests.quiet(now - QUIET_S)
        workers = {request.worker for request in quiet if request.worker}
        for model in {request.generation.model_slug for request in quiet if not request.worker}:
            workers.update(self._fleet.workers_of(model))
        self._ask_again(workers, now)

    def _ask_again(self, workers: Iterable[str], now: float) -> None:
        for worker, seq in self.requests.next_seqs(sorted(workers)).items():
            self._missing.ask(worker, seq, now)

    def _leave_stalled(self, worker: str, now: float) -> None:
        """A worker fell silent: nothing that it has, or may have got and not accepted, waits for it."""
        lost = self.requests.running_on([worker])
        if lost:
            log.warning("worker.stalled", worker=worker, num_requests=len(lost))
        self._send_untaken_again(worker, now - STALE_JOB_S, now)
        self._lose(lost, now)

    def _send_untaken_again(self, worker: str, since: float, now: float) -> None:
        """Jobs may lie with a worker that cannot take them; sooner than the broker, this sends them to others."""
        untaken = self.requests.untaken(worker, since)
        if untaken:
            self._cancels.tell_all([request.ticket for request in untaken])
        for request in untaken:
            self._retry(request, "untaken", now)

    def _retry(self, request: Request, reason: str, now: float, *, delay_s: float = 0.0) -> None:
        """Make another attempt from the tokens that are there, unless they are all there will be."""
        if not request.is_live:
            return
        if request.worker:
            self._cancels.tell(request.worker, (request.ticket,), now)
        ending = request.ending()
        if ending is not None:
            self._finish(request, ending)
        elif self.requests.retry(request, now, is_fault=reason not in _BLAMELESS):
            metrics.FRONTEND_RETRIES.labels(reason=reason).inc()
            log.info("request.retried", request_id=request.request_id, attempt=request.attempt, reason=reason)
            if not request.is_held:
                self._tasks.start_soon(self._dispatch_again, request, request.ticket, delay_s)
        else:
            message = f"The request failed {request.attempt + 1} times, the last time because of: {reason}."
            self._fail(request, GenerationFailed(message, code="attempts_exhausted"))

    async def _dispatch_again(self, request: Request, ticket: int, delay_s: float) -> None:
        """Publish an attempt after the first; while the broker refuses, until nobody would accept it in time."""
        await anyio.sleep(delay_s)
        pause_s = FIRST_RETRY_S
        while request.is_live and request.ticket == ticket:
            try:
                await self._append(request)
                return
            except Retryable:
                # `_tick` gives up after `accept_timeout_s`.
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_RETRY_S)
            except BuswayError as error:
                if request.ticket == ticket:
                    self._fail(request, error)
                return

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.is_live:
            self.requests.close(request)
            self._books.finished(request, reason, time.monotonic())
            request.output.finish(reason, request.usage())

    def _fail(self, request: Request, error: BuswayError) -> None:
        if request.is_live:
            self.requests.close(request)
            self._books.failed(request, error, time.monotonic())
            request.output.fail(error)

    def _show_drops(self) -> None:
        drops = (self.requests.num_duplicates, self.requests.num_stale)
        metrics.FRONTEND_DROPPED_TOKENS.labels(reason="duplicate").inc(drops[0] - self._num_shown[0])
        metrics.FRONTEND_DROPPED_TOKENS.labels(reason="stale").inc(drops[1] - self._num_shown[1])
        self._num_shown = drops
