"""I/O. The prefilling side of a handover: blocks are kept, the job goes to those who decode, a lease guards both."""

from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from bus.codec import encode
from bus.errors import BuswayError
from bus.messages.base import pack_u32
from bus.messages.inference import GenerateJob
from bus.messages.transfer import Handover
from bus.metrics import WORKER_HANDOVERS
from bus.protocol import AppendAck, Bus
from bus.subjects import ANY_WORKER, slug
from components.engines import Engine
from components.engines.exchange import Held
from components.transfer import Ending, Transfer
from components.worker.peers import Peers

log = structlog.get_logger()
_outcomes = {outcome: WORKER_HANDOVERS.labels(outcome) for outcome in ("released", "expired", "withdrawn", "failed")}


class _Kept:
    """Blocks of a sequence, in the order of its tokens."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.last_hash = 0
        self.lease: int | None = None


class Handovers:
    """Sequences of which only the first token is computed here, by key. All calls return at once.

    `on_end` hears when a handover is over, and whether a decode worker took it; if not, somebody must begin again.
    """

    def __init__(
        self, bus: Bus, worker: str, engine: Engine, peers: Peers, on_end: Callable[[int, bool], None]
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._engine = engine
        self._peers = peers
        self._on_end = on_end
        self._kept: dict[int, _Kept] = {}

    @property
    def num_leased(self) -> int:
        """Sequences that wait for their reader."""
        return sum(kept.lease is not None for kept in self._kept.values())

    def expect(self, key: int) -> None:
        """The engine was asked to keep the blocks of this sequence."""
        self._kept[key] = _Kept()

    def on_held(self, held: Held) -> None:
        """Blocks of a sequence are full."""
        kept = self._kept.get(held.key)
        if kept is not None and held.blocks:
            kept.blocks += held.blocks
            kept.last_hash = held.hashes[-1]

    def drop(self, key: int) -> None:
        """Nothing is handed over (any more). What is leased already is kept until its reader is through."""
        kept = self._kept.get(key)
        if kept is not None and kept.lease is None:
            del self._kept[key]
            self._engine.release(key)

    def is_leased(self, key: int) -> bool:
        """Say whether a sequence waits for its reader."""
        kept = self._kept.get(key)
        return kept is not None and kept.lease is not None

    def take_back(self, key: int, transfer: Transfer) -> None:
        """End the lease of a sequence that has one."""
        lease = self._kept[key].lease
        assert lease is not None
        transfer.withdraw(lease)

    def send(self, key: int, job: GenerateJob, token: int, transfer: Transfer) -> None:
        """Offer the blocks, and send the job on behind its first token `token`; what fails is told by `on_end`."""
        kept = self._kept[key]
        try:
            offer = transfer.offer(kept.blocks, partial(self._on_lease_end, key))
        except BuswayError as error:
            self._fail(key, error)
            return
        kept.lease = offer.lease
        decode_job = msgspec.structs.replace(
            job,
            output=job.output + pack_u32([token]),
            handover=Handover(worker=self._worker, offer=offer, num_blocks=len(kept.blocks), last_hash=kept.last_hash),
        )
        model = slug(job.model)
        subjects = self._bus.subjects
        if self._peers.has_router:
            subject = subjects.req(model, job.latency_class, slug(job.tenant))
        else:
            subject = subjects.work(model, "decode", ANY_WORKER, job.latency_class)
        try:
            self._bus.append_soon(
                subject,
                encode(decode_job),
                partial(self._on_appended, key, transfer),
                msg_id=f"{job.request_id}:{job.attempt}:decode",
                ttl_s=max(1, round(offer.lease_s)),
            )
        except BuswayError as error:
            self._on_appended(key, transfer, error)

    def _on_appended(self, key: int, transfer: Transfer, answer: AppendAck | BuswayError) -> None:
        kept = self._kept.get(key)
        if isinstance(answer, BuswayError) and kept is not None and kept.lease is not None:
            log.warning("handover.not_sent", code=answer.code, reason=str(answer)[:300])
            transfer.withdraw(kept.lease)

    def _on_lease_end(self, key: int, ending: Ending) -> None:
        _outcomes[ending].inc()
        self._end(key, is_taken=ending == "released")

    def _fail(self, key: int, error: BuswayError) -> None:
        _outcomes["failed"].inc()
        log.warning("handover.not_offered", code=error.code, reason=str(error)[:300])
        self._end(key, is_taken=False)

    def _end(self, key: int, *, is_taken: bool) -> None:
        if self._kept.pop(key, None) is not None:
            self._engine.release(key)
            self._on_end(key, is_taken)
