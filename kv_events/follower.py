"""I/O. Keeps a prefix index equal to what the workers of a model hold.

The order of things: subscribe, then replay what the stream has kept, and put both together by numbers. What is missing
shows in the numbers or in the heartbeats' digests, and is asked of the worker. Nothing waits for any of this: a worker
that is not known (yet, or any more) holds nothing, and a wrong index costs cache misses only.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
import structlog

from bus.codec import Codec, codec, encode
from bus.errors import BusUnavailable, BuswayError, Malformed
from bus.messages.fleet import WorkerCard, WorkerLoad
from bus.messages.kv import KvBatch, KvEvent, TierBatch
from bus.metrics import KV_EVENTS, KV_GAPS, KV_QUERIES, MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming
from bus.registry import watch_cards
from bus.subjects import slug
from kv_events.index import PrefixIndex
from kv_events.splice import Splice

ASK_EVERY_S = 1.0
"""Time between two questions to one worker."""
JITTER_S = 0.2
"""Several routers that miss the same message ask at different times."""

log = structlog.get_logger()
_batches = codec(KvBatch)
_tier_batches = codec(TierBatch)
_events = Codec[KvEvent](KvEvent)
_gaps = {reason: KV_GAPS.labels(reason) for reason in ("missing", "digest")}
_malformed = MALFORMED_MESSAGES.labels("kv")
_malformed_tier = MALFORMED_MESSAGES.labels("tier")


class _Worker:
    __slots__ = ("ask_at", "splice", "timer")

    def __init__(self) -> None:
        self.splice = Splice()
        self.ask_at = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Follower:
    """The reading side of the workers' block events; made by `follow`."""

    def __init__(self, bus: Bus, model: str, index: PrefixIndex, rng: random.Random) -> None:
        self._bus = bus
        self._model = model
        self._index = index
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._workers: dict[str, _Worker] = {}
        self._inbox = bus.new_inbox()
        self.is_replaying = True
        """Whether the stream is still being read; nobody is asked before."""

    def is_synced(self, worker: str) -> bool:
        """Whether the index has, as far as can be known, all that the worker holds."""
        state = self._workers.get(worker)
        return state is not None and state.splice.is_synced

    def drop(self, worker: str) -> None:
        """Forget a worker and its blocks; it is followed again when its card is put again."""
        state = self._workers.pop(worker, None)
        if state is not None and state.timer is not None:
            state.timer.cancel()
        self._index.remove_worker(worker)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Take what workers tell while the context is open, and forget it all afterwards."""
        subjects = self._bus.subjects
        subscriptions = [
            self._bus.subscribe(subjects.kv(self._model, "*"), self._on_message),
            self._bus.subscribe(self._inbox, self._on_message),
            self._bus.subscribe(subjects.tier(self._model, "*"), self._on_tier),
        ]
        try:
            async with watch_cards(self._bus, "worker", WorkerCard, self._on_card):
                yield
        finally:
            for subscription in subscriptions:
                subscription.unsubscribe()
            for worker in list(self._workers):
                self.drop(worker)
            self._index.forget_shared()

    async def replay(self) -> None:
        """Read what the stream has kept, and from then on ask for what is missing."""
        started_at = self._loop.time()
        try:
            await self._bus.replay("KV", self._bus.subjects.kv(self._model, "*"), self._on_message)
            await self._bus.replay("KV", self._bus.subjects.tier(self._model, "*"), self._on_tier)
        except BuswayError as error:
            log.warning("kv_events.not_replayed", model=self._model, reason=str(error))
        self.is_replaying = False
        for worker in list(self._workers):
            self._repair(worker)
        log.info(
            "kv_events.replayed",
            model=self._model,
            num_workers=len(self._workers),
            num_blocks=len(self._index),
            duration_s=round(self._loop.time() - started_at, 3),
        )

    def _on_card(self, worker: str, card: WorkerCard | None) -> None:
        if card is None:
            self.drop(worker)
        elif slug(card.model) == self._model:
            self._workers.setdefault(worker, _Worker())

    def _on_message(self, message: Incoming) -> None:
        try:
            batch = _batches.decode(message.payload)
        except Malformed:
            _malformed.inc()
            return
        state = self._workers.get(batch.worker)
        if state is None:
            return
        if message.subject != self._inbox and not message.subject.endswith(f".{batch.worker}"):
            _malformed.inc()
            return
        was_synced = state.splice.is_synced
        update = state.splice.take(batch)
        if update.is_reset:
            self._index.remove_worker(batch.worker)
        if update.events:
            self._apply(batch.worker, update.events)
        if not state.splice.is_synced:
            if was_synced:
                _gaps["missing"].inc()
            self._repair(batch.worker)

    def _on_tier(self, message: Incoming) -> None:
        try:
            batch = _tier_batches.decode(message.payload)
            if message.subject.endswith(f".{batch.owner}"):
                self._index.apply_shared(batch.owner, _decode_events(batch.events))
                return
        except Malformed:
            pass
        _malformed_tier.inc()

    def hear(self, load: WorkerLoad) -> None:
        """Compare what a worker reports with what is known: whoever follows takes its reports, and hands them on."""
        worker = load.worker
        state = self._workers.get(worker)
        if state is None or not load.kv_epoch:
            return
        splice = state.splice
        was_synced = splice.is_synced
        if splice.hear(load.kv_epoch, load.kv_seq):
            self._index.remove_worker(worker)
        if was_synced and not splice.is_synced:
            _gaps["missing"].inc()
        elif (
            splice.is_at(load.kv_epoch, load.kv_seq)
            and self._index.digest(worker) != (load.kv_count, load.kv_xor)
            and not self._index.is_truncated(worker)
        ):
            _gaps["digest"].inc()
            splice.distrust()
        self._repair(worker)

    def _apply(self, worker: str, encoded: Sequence[msgspec.Raw]) -> None:
        """Apply events; those that cannot be read are skipped, the digest tells if that matters."""
        try:
            self._index.apply(worker, _decode_events(encoded))
        except Malformed:
            _malformed.inc()

    def _repair(self, worker: str) -> None:
        """See to it that the worker is asked soon for what is missing, if anything is."""
        state = self._workers[worker]
        if self.is_replaying or state.timer is not None or state.splice.query() is None:
            return
        wait_s = max(0.0, state.ask_at - self._loop.time()) + self._rng.uniform(0.0, JITTER_S)
        state.timer = self._loop.call_later(wait_s, self._ask, worker, state)

    def _ask(self, worker: str, state: _Worker) -> None:
        state.timer = None
        query = state.splice.query()
        if query is None:
            return
        state.ask_at = self._loop.time() + ASK_EVERY_S
        KV_QUERIES.inc()
        try:
            self._bus.publish(self._bus.subjects.kvq(worker), encode(query), reply=self._inbox)
        except BusUnavailable:
            log.debug("kv_query.not_sent", worker=worker)


def _decode_events(encoded: Sequence[msgspec.Raw]) -> list[KvEvent]:
    """Return the events; those that cannot be read are counted and left out."""
    events: list[KvEvent] = []
    for raw in encoded:
        try:
            events.append(_events.decode(raw))
        except Malformed:
            _malformed.inc()
    KV_EVENTS.inc(len(events))
    return events


@asynccontextmanager
async def follow(
    bus: Bus, model: str, index: PrefixIndex, *, rng: random.Random | None = None
) -> AsyncIterator[Follower]:
    """Keep `index` equal to what the workers of a model (by slug) hold, while the context is open.

    Entering waits for the workers' cards alone, not for their blocks; leaving empties the index of them. What was lost
    is found when the follower is told of the workers' reports (`Follower.hear`). `rng` spreads questions in time.
    """
    follower = Follower(bus, model, index, rng or random.Random())
    failure: Exception | None = None
    async with follower.listen(), anyio.create_task_group() as tasks:
        tasks.start_soon(follower.replay)
        try:
            yield follower
        except Exception as error:
            # Kept, not raised: a task group would wrap it, and callers look for its class.
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
