"""I/O. What comes in: jobs from the lanes, commands on the control subject. Their fate is decided here, at once."""

import asyncio
import time
from collections.abc import Callable, Sequence

import anyio
import structlog

from bus.dead import bury
from bus.errors import EngineBusy, Malformed, Permanent
from bus.messages.inference import Cancel, Drain, Finished, GenerateJob, Role, SetRoles
from bus.metrics import MALFORMED_MESSAGES, WORKER_JOBS
from bus.protocol import Bus, Delivery, Incoming, Pull
from components.worker.exchange import Exchange
from components.worker.jobs import Served, make_request, read_command, read_job, read_tickets, reason_to_end
from components.worker.lanes import MAX_DELIVER, Lane
from components.worker.sequences import Sequences
from components.worker.turns import STANDS_S, Turns

GRANT_SIZE = 32
"""Most deliveries that one lane has open. What several lanes hold open together may exceed the free slots (nobody
knows which lane will have work), and the surplus of a burst goes back to the queue."""
STUCK_MESSAGE = "the engine of the worker makes no step"

log = structlog.get_logger()
_jobs = {
    outcome: WORKER_JOBS.labels(outcome)
    for outcome in ("accepted", "repeated", "returned", "refused", "buried", "early")
}


class Intake:
    """Takes jobs as slots are free: a job is acked when the engine has it, or when its owner knows why not."""

    def __init__(
        self,
        bus: Bus,
        sequences: Sequences,
        exchange: Exchange,
        served: Served,
        slots: int,
        *,
        on_change: Callable[[], None],
        on_drain: Callable[[float | None], None],
        on_roles: Callable[[frozenset[Role], str], None],
    ) -> None:
        """`on_drain` is called with the seconds that a drain on command leaves, None for the usual time.

        `on_roles` is called with new roles, and with the subject where an answer is awaited (empty: nowhere).
        """
        self._bus = bus
        self._sequences = sequences
        self._exchange = exchange
        self._served = served
        self._slots = slots
        self._on_change = on_change
        self._on_drain = on_drain
        self._on_roles = on_roles
        self.is_stuck = False
        """The engine makes no step: what still comes goes back to its owner, who finds another worker."""
        self._pulls: Sequence[tuple[Lane, Pull]] = ()
        self._turns = Turns()
        self._timer: asyncio.TimerHandle | None = None
        self._warned: set[str] = set()

    def open(self, pulls: Sequence[tuple[Lane, Pull]]) -> None:
        """Take jobs from these lanes from now on."""
        self._pulls = pulls
        self.grant()

    def close(self) -> None:
        """Take no more: what still arrives goes back to the queue."""
        self._pulls = ()

    def grant(self) -> None:
        """Let every lane deliver what there are free slots for; shared ones in the order of `Turns`.

        A delivery takes from its lane's grant and from the free slots alike, so a lane that works alone never
        delivers more than there is room for.
        """
        num_messages = min(self._slots - len(self._sequences.ledger), GRANT_SIZE)
        if num_messages <= 0 or not self._pulls:
            return
        loop = asyncio.get_running_loop()
        now, turns = loop.time(), self._turns
        waits_for_others = False
        for latency_class in (None, *turns.order()):
            if waits_for_others:
                break
            for lane, pull in self._pulls:
                if lane.latency_class == latency_class:
                    pull.grant(num_messages)
            if latency_class is not None:
                turns.note_grant(latency_class, num_messages, now)
                waits_for_others = not turns.has_nobody(latency_class, now)
        if waits_for_others and self._timer is None:
            self._timer = loop.call_later(STANDS_S, self._grant_later)

    def _grant_later(self) -> None:
        self._timer = None
        self.grant()

    def on_delivery(self, lane: Lane, delivery: Delivery) -> None:
        """Decide over one job that came by that lane; called by the bus."""
        if lane.latency_class is not None:
            self._turns.note_delivery(lane.latency_class)
        if not self._pulls:
            delivery.nak()
            return
        try:
            job = read_job(delivery.payload)
        except Malformed as error:
            self._bury(delivery, error)
        else:
            _jobs[self._decide(lane.role, delivery, job)].inc()
        self._on_change()

    def on_control(self, message: Incoming) -> None:
        try:
            command = read_command(message.payload)
            if isinstance(command, Cancel):
                self._sequences.cancel(command.frontend, read_tickets(command))
            elif isinstance(command, Drain):
                self._on_drain(command.grace_s)
            elif isinstance(command, SetRoles):
                self._on_roles(frozenset(command.roles), message.reply)
            else:
                self._sequences.publisher.resend(command.frontend, command.seq)
        except Malformed as error:
            MALFORMED_MESSAGES.labels("ctl").inc()
            self._warn_once("control.malformed", message.subject, error)

    def _decide(self, lane: Role, delivery: Delivery, job: GenerateJob) -> str:
        sequences = self._sequences
        if job.handover is not None and job.handover.is_early:
            delivery.ack()
            return self._take_early(job)
        comes_back = self._exchange.is_from_here(job) and sequences.take_back(job)
        if not comes_back and sequences.ledger.is_known(job.frontend, job.ticket, anyio.current_time()):
            delivery.ack()
            return "repeated"
        if self.is_stuck:
            return self._refuse(delivery, job, "draining", STUCK_MESSAGE, is_retryable=True)
        try:
            if len(sequences.ledger) >= self._slots:
                raise EngineBusy(f"all {self._slots} slots are taken", delay_s=_backoff_s(delivery))
            request = make_request(job, sequences.next_key(), self._served, time.time())
            if reason := reason_to_end(request, self._served.max_model_len):
                sequences.finish_at_once(job, Finished(job.ticket, len(request.output), reason))
                self._exchange.decline(job)
            else:
                sequences.accept(job, self._exchange.prepare(job, request, lane))
        except EngineBusy as error:
            if delivery.num_delivered < MAX_DELIVER:
                delivery.nak(error.delay_s)
                return "returned"
            return self._refuse(delivery, job, error.code, str(error), is_retryable=True)
        except Permanent as error:
            log.info("job.refused", request_id=job.request_id, code=error.code)
            return self._refuse(delivery, job, error.code, str(error), is_retryable=False)
        delivery.ack()
        return "accepted"

    def _refuse(self, delivery: Delivery, job: GenerateJob, code: str, message: str, *, is_retryable: bool) -> str:
        self._sequences.refuse(job, code, message, is_retryable=is_retryable)
        self._exchange.decline(job)
        delivery.ack()
        return "refused"

    def _take_early(self, job: GenerateJob) -> str:
        """Nobody waits for it: when it cannot be done, the job that comes behind it says why."""
        try:
            request = make_request(job, self._sequences.next_key(), self._served, time.time())
        except Permanent:
            return "refused"
        self._exchange.fetch_early(job, request)
        return "early"

    def _bury(self, delivery: Delivery, error: Malformed) -> None:
        MALFORMED_MESSAGES.labels("work").inc()
        _jobs["buried"].inc()
        self._warn_once("job.malformed", delivery.subject, error)
        bury(self._bus, "work", delivery, error, died_at=time.time())

    def _warn_once(self, event: str, subject: str, error: Malformed) -> None:
        """Log the first of its kind: the rest is in the metrics, and the bodies among the dead letters."""
        if event not in self._warned:
            self._warned.add(event)
            log.warning(event, subject=subject, reason=str(error)[:200], note="logged once, counted always")


def _backoff_s(delivery: Delivery) -> float:
    """Return when a surplus job is worth another delivery, in seconds: soon at first, then every second."""
    return min(1.0, 0.02 * (1 << min(delivery.num_delivered - 1, 10)))
