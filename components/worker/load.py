"""I/O. The worker's heartbeat: how busy it is, every 250 ms and soon after a change."""

import time

import anyio

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.messages.fleet import WorkerLoad
from bus.metrics import WORKER_FREE_BLOCKS, WORKER_RUNNING, WORKER_WAITING
from bus.protocol import Bus
from bus.subjects import slug
from components.engines import Engine
from components.worker.exchange import Exchange
from components.worker.sequences import Sequences
from kv_events.log import KvLog

INTERVAL_S = 0.25

MIN_INTERVAL_S = 0.05
"""Changes that follow each other faster are told together."""


class LoadReporter:
    """Publishes `WorkerLoad`. A bus that is full loses reports, and the next one says all that they said."""

    def __init__(
        self, bus: Bus, engine: Engine, sequences: Sequences, kv_log: KvLog, *, model: str, exchange: Exchange
    ) -> None:
        self._bus = bus
        self._engine = engine
        self._sequences = sequences
        self._kv_log = kv_log
        self._model = model
        self._exchange = exchange
        self._subject = bus.subjects.load(slug(model), kv_log.worker)
        self._changed = anyio.Event()

    def note_change(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._changed = anyio.Event()
            self._report()
            with anyio.move_on_after(INTERVAL_S):
                await self._changed.wait()
                await anyio.sleep(MIN_INTERVAL_S)

    def _report(self) -> None:
        self._sequences.publish_events()
        load, kv_log, fetch_times = self._engine.load(), self._kv_log, self._exchange.fetch_times
        WORKER_RUNNING.set(load.running)
        WORKER_WAITING.set(load.waiting)
        WORKER_FREE_BLOCKS.set(load.free_blocks)
        report = WorkerLoad(
            worker=kv_log.worker,
            model=self._model,
            running=load.running,
            waiting=load.waiting,
            free_blocks=load.free_blocks,
            num_blocks=self._engine.spec.num_blocks,
            prefill_tokens=load.prefill_tokens,
            step_s=self._sequences.last_step_s,
            at=time.time(),
            kv_epoch=kv_log.epoch,
            kv_seq=kv_log.next_seq,
            kv_count=kv_log.num_blocks,
            kv_xor=kv_log.xor,
            waiting_tokens=load.waiting_tokens,
            steps=self._sequences.steps.take(),
            tiers=load.tiers,
            roles=sorted(self._exchange.roles),
            fetch_s=fetch_times.base_s,
            fetch_token_s=fetch_times.units_s[0],
            taken=len(self._sequences.ledger),
        )
        try:
            self._bus.publish(self._subject, encode(report))
        except BusUnavailable:
            pass
