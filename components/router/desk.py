"""I/O. The requests of one model: pulled from `REQ`, decided by the pool, appended to workers' lanes."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import anyio
import structlog

from bus.codec import codec, encode
from bus.dead import bury
from bus.errors import BusUnavailable, BuswayError, Malformed
from bus.messages.inference import LATENCY_CLASSES, LatencyClass, Role
from bus.messages.route import Placed, RouteBatch
from bus.metrics import MALFORMED_MESSAGES, ROUTER_PREFILLS, ROUTER_REQUESTS, ROUTER_TOKENS, ROUTER_WAIT
from bus.protocol import AppendAck, Bus, ConsumerSpec, Delivery, OnAppended, Pull
from bus.subjects import ANY_WORKER, slug
from components.router.answers import Answers
from components.router.lead import Lead
from components.router.pool import Placement, Pool, Refusal
from components.router.queue import Entry
from components.router.request import Origin, Request, RoutedJob, to_request

ACK_WAIT_S = 0.45
"""The requests that a dead router holds go to another one after this."""
RENEW_S = 0.1
"""Between two signs that a request is still held here."""
MAX_DELIVER = 50
"""A request comes again each time that a router dies or leaves."""
GRANT_SIZE = 16
"""Most deliveries that one class has open. A router that freezes swallows so many, each for `ACK_WAIT_S`: with 256 some
come to it ten times before another router has them."""
MAX_NEWS = 256
"""Decisions in one message to other routers; those of one turn of the event loop are told together."""
APPEND_TIMEOUT_S = 1.0
MAX_SENDING = 512
"""Appends that the broker may owe an answer for: a broker that is behind gets no more, so that what it was given is in
time and not sent again."""
RETRY_S = 0.1
"""Between a job that the broker did not take and the next try of any."""
SHORTEST_NAP_S = 0.001
LONGEST_NAP_S = 0.25

log = structlog.get_logger()
_jobs = codec(RoutedJob)
_outcomes = ROUTER_REQUESTS.counts
_tokens = ROUTER_TOKENS.counts


class Desk:
    """Ties one pool to the bus."""

    def __init__(
        self,
        bus: Bus,
        router: str,
        model: str,
        pool: Pool,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`wall` tells the time of day, in unix seconds: deadlines of jobs are given so."""
        self._bus = bus
        self._router = router
        self._model = slug(model)
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._answers = Answers(bus, router)
        self._pulls: dict[LatencyClass, Pull] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_deferred = False
        self._resume_at = 0.0
        """Nothing is placed before: the broker took a job no more."""
        self._told = 0
        self._renewed_at = self._loop.time()
        self.num_sending = 0
        """Appends that the broker has not answered."""
        self._all_sent = anyio.Event()
        self._is_stopped = False
        self._turned = anyio.Event()
        self.pool = pool
        self.lead = Lead(router, self._loop.time())

    async def wait_turn(self, *, is_leading: bool) -> None:
        """Wait until this router leads, or until it does no more; `stop` ends every wait."""
        while self.lead.is_leading != is_leading and not self._is_stopped:
            self._turned = anyio.Event()
            await self._turned.wait()

    def stop(self) -> None:
        """Wait for no turn any more."""
        self._is_stopped = True
        self._turned.set()

    def hear_leader(self, router: str) -> None:
        """Another router says that it leads."""
        self.lead.hear(router, self._loop.time())
        if not self.lead.is_leading:
            self.pool.orphans = []  # it lives, and sends again what it sent
        self._turned.set()

    async def open(self, stack: AsyncExitStack) -> None:
        """Pull requests until `stack` closes."""
        pulls: dict[LatencyClass, Pull] = {}
        for latency_class in LATENCY_CLASSES:
            consumer = ConsumerSpec(
                stream="REQ",
                name=f"req-{self._model}-{latency_class}",
                filter_subject=self._bus.subjects.req(self._model, latency_class, "*"),
                ack_wait_s=ACK_WAIT_S,
                max_deliver=MAX_DELIVER,
            )
            pulls[latency_class] = await stack.enter_async_context(self._bus.pull(consumer, self._on_delivery))
        self._pulls = pulls
        self._grant()

    def close(self) -> None:
        """Take nothing more and give back what waits."""
        self.rest()
        for entry in self.pool.queue.all():
            self.pool.queue.remove(entry)
            self._give_back(entry)

    async def drain(self) -> None:
        """Wait until the broker has answered for all that was sent: that takes `APPEND_TIMEOUT_S` at most."""
        while self.num_sending:
            self._all_sent = anyio.Event()
            await self._all_sent.wait()

    def rest(self) -> None:
        """Take nothing more, and wake no more."""
        self._pulls = {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def work(self) -> None:
        """Place what can be placed now, and see when to look again."""
        now = self._loop.time()
        pool = self.pool
        room = MAX_SENDING - self.num_sending
        if room > 0 and now >= self._resume_at:
            for placement in pool.plan(now, room):
                self._send(placement)
        self._tell()
        self._grant()
        if len(pool.queue) and self._pulls:
            at = min(pool.fleet.next_room_at(now), now + LONGEST_NAP_S)
            self._wake_at(max(at, now + SHORTEST_NAP_S, self._resume_at))
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def work_soon(self) -> None:
        """Plan what came at once together: first come is a matter of chance in a burst."""
        if not self._is_deferred:
            self._is_deferred = True
            self._bus.defer(self._end_burst)

    def lose(self, worker: str) -> None:
        """Forget a worker; what it had not accepted goes to others."""
        num_rescued = self.pool.leave(worker)
        if num_rescued:
            _outcomes["rescued"] += num_rescued
            log.info("requests.rescued", worker=worker, num_requests=num_rescued)
            self.work()
        self._tell_owners()

    def tick(self) -> None:
        """Do what is due every so often: hold on to what waits, give up what waited too long."""
        now = self._loop.time()
        self.lead.look(now)
        self._turned.set()
        if self.lead.is_leading and not self._is_stopped:
            self._publish([])
            self._tell_owners()
        self.pool.note_time(now)
        for request, refusal in self.pool.expire(now):
            if request.origin is not None:
                self._refuse(request.origin, refusal, "expired")
        if now - self._renewed_at >= RENEW_S:
            self._renewed_at = now
            for entry in self.pool.queue.all():
                if entry.item.origin is not None and not entry.item.origin.is_acked:
                    entry.item.origin.delivery.in_progress()
        self.work()

    def _tell_owners(self) -> None:
        """Nobody has what a router and a worker that are gone had: their owners can make another attempt at once."""
        if not self.lead.is_leading or not self.pool.orphans:
            return
        orphans, self.pool.orphans = self.pool.orphans, []
        log.warning("requests.orphaned", num_requests=len(orphans))
        for placed in orphans:
            self._answers.lose(placed)

    def _on_delivery(self, delivery: Delivery) -> None:
        if not self._pulls:
            delivery.nak()
            return
        try:
            job = _jobs.decode(delivery.payload)
            if slug(job.frontend) != job.frontend:
                raise Malformed(f"frontend {job.frontend[:80]!r} is no subject token")
        except Malformed as error:
            self._bury(delivery, error)
            return
        now = self._loop.time()
        pool = self.pool
        request = to_request(job, delivery, pool.block_sizes())
        deadline = None if job.deadline_at is None else now + job.deadline_at - self._wall()
        refusal = pool.admit(request, deadline, now)
        if refusal is not None and request.origin is not None:
            self._refuse(request.origin, refusal, "refused")
        self.work_soon()

    def _end_burst(self) -> None:
        self._is_deferred = False
        if self._pulls:
            self.work()

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self.work)

    def _send(self, placement: Placement) -> None:
        """Append a job to the lane of its worker."""
        request = placement.request
        assert request.origin is not None
        choice = placement.choice
        if choice.reason:
            ROUTER_PREFILLS.labels("remote" if choice.role == "prefill" else "local").inc()
            log.info(
                "prefill.placed", request_id=request.key, worker=choice.worker, role=choice.role, why=choice.reason
            )
        self._append(request, choice.worker, choice.role, partial(self._sent, placement))

    def _sent(self, placement: Placement, answer: AppendAck | BuswayError) -> None:
        """The job is in the lane, or the broker lost it: then it waits again."""
        request, choice = placement.request, placement.choice
        origin = request.origin
        assert origin is not None
        self._count_answer()
        if isinstance(answer, BuswayError):
            _outcomes["withdrawn"] += 1
            log.warning("request.not_placed", worker=choice.worker, reason=str(answer))
            now = self._loop.time()
            self.pool.withdraw(placement, now)
            if self._pulls:
                self._resume_at = now + RETRY_S
                self._wake_at(self._resume_at)
            else:
                self.pool.queue.remove(placement.entry)
                self._give_back(placement.entry)
            return
        if not origin.is_acked:
            origin.delivery.ack()
            origin.is_acked = True
        _outcomes["placed"] += 1
        _tokens["computed"] += choice.uncached_tokens
        _tokens["cached"] += request.num_tokens - choice.uncached_tokens
        ROUTER_WAIT.observe(placement.waited_s)

    def _give_back(self, entry: Entry[Request]) -> None:
        """Leave a request to other routers, or, when the queue of requests knows it no more, to any worker."""
        origin = entry.item.origin
        if origin is None:
            return
        if origin.is_acked:
            role: Role = "both" if entry.item.num_prefilled_blocks is None else "decode"
            self._append(entry.item, ANY_WORKER, role, self._returned)
        else:
            origin.delivery.nak()

    def _returned(self, answer: AppendAck | BuswayError) -> None:
        self._count_answer()
        if isinstance(answer, BuswayError):
            log.warning("request.not_returned", reason=str(answer))

    def _append(self, request: Request, worker: str, role: Role, on_done: OnAppended) -> None:
        origin = request.origin
        assert origin is not None
        subject = self._bus.subjects.work(self._model, role, worker, request.latency_class)
        self._bus.append_soon(
            subject,
            origin.delivery.payload,
            on_done,
            msg_id=origin.message_id,
            ttl_s=origin.lifetime_s,
            timeout_s=APPEND_TIMEOUT_S,
        )
        self.num_sending += 1

    def _count_answer(self) -> None:
        self.num_sending -= 1
        if self.num_sending == MAX_SENDING - 1:
            self.work_soon()
        if not self.num_sending:
            self._all_sent.set()

    def _refuse(self, origin: Origin, refusal: Refusal, outcome: str) -> None:
        _outcomes[outcome] += 1
        if self._answers.refuse(origin, refusal):
            origin.delivery.ack()
        else:
            origin.delivery.nak(1.0)

    def _tell(self) -> None:
        news, self.pool.news = self.pool.news, []
        for first in range(0, len(news), MAX_NEWS):
            self._publish(news[first : first + MAX_NEWS])

    def _publish(self, placed: list[Placed]) -> None:
        batch = RouteBatch(self._router, self._told, placed, self.lead.is_leading)
        self._told += 1
        try:
            self._bus.publish(self._bus.subjects.route(self._model, self._router), encode(batch))
        except BusUnavailable:
            pass  # reports of the workers will tell

    def _grant(self) -> None:
        for latency_class, pull in self._pulls.items():
            pull.grant(min(GRANT_SIZE, self.pool.queue.room(latency_class)))

    def _bury(self, delivery: Delivery, error: Malformed) -> None:
        MALFORMED_MESSAGES.labels("req").inc()
        _outcomes["buried"] += 1
        bury(self._bus, "req", delivery, error, died_at=self._wall())
