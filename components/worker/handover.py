"""I/O. The prefilling side of a handover: blocks are kept, the job goes to those who decode, a lease guards both.

    prefill worker   chunk 1 | chunk 2 | chunk 3 -> first token, to the owner
                         early \\   early \\     job \\
    decode worker               fetch     fetch      fetch what is left -> goes on
"""

from collections.abc import Callable, Iterable
from functools import partial

import msgspec
import structlog
import xxhash

from bus.codec import encode
from bus.errors import BuswayError
from bus.messages.base import pack_u32
from bus.messages.inference import GenerateJob, Sampling, Stopping
from bus.messages.transfer import BlockOffer, Handover
from bus.metrics import WORKER_HANDOVERS
from bus.protocol import AppendAck, Bus
from bus.subjects import ANY_WORKER, slug
from components.engines import Engine
from components.engines.exchange import Held
from components.transfer import Ending, Transfer
from components.worker.peers import Peers

EARLY_TOKENS = 1024
"""What a prompt has more than at the last early offer, at least, and `EARLY_SHARE` of what it had then: each names the
tokens before it again, so that together they stay within a few times the prompt."""
EARLY_SHARE = 0.25
EARLY_TTL_S = 1
"""An early offer that was not taken for so long comes too late."""
HELLO_TTL_S = 5

log = structlog.get_logger()
_outcomes = {outcome: WORKER_HANDOVERS.labels(outcome) for outcome in ("released", "expired", "withdrawn", "failed")}


class _Kept:
    """Blocks of a sequence, in the order of its tokens."""

    def __init__(self, job: GenerateJob) -> None:
        self.job = job
        self.blocks: list[int] = []
        self.last_hash = 0
        self.lease: int | None = None
        self.early: set[int] = set()
        """Leases of early offers."""
        self.num_early = 0
        """Blocks in the last early offer."""


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
        self._block_size = engine.spec.block_size
        self._peers = peers
        self._on_end = on_end
        self._kept: dict[int, _Kept] = {}
        self._transfer: Transfer | None = None
        self._greeted: set[str] = set()

    @property
    def is_lending(self) -> bool:
        """Whether blocks wait for their readers."""
        return any(kept.lease is not None for kept in self._kept.values())

    def connect(self, transfer: Transfer) -> None:
        """Offer by this transfer."""
        self._transfer = transfer

    def expect(self, key: int, job: GenerateJob) -> None:
        """The engine was asked to keep the blocks of this sequence; to be called after `connect`."""
        self._kept[key] = _Kept(job)

    def on_held(self, held: Held) -> None:
        """Blocks of a sequence are full."""
        kept = self._kept.get(held.key)
        if kept is None or not held.blocks:
            return
        kept.blocks += held.blocks
        kept.last_hash = held.hashes[-1]
        num_more = len(kept.blocks) - kept.num_early
        if not held.is_last and num_more >= max(EARLY_TOKENS / self._block_size, EARLY_SHARE * kept.num_early):
            self._send_early(kept)

    def drop(self, key: int) -> None:
        """Nothing is handed over (any more). What is leased already is kept until its reader is through."""
        kept = self._kept.get(key)
        if kept is not None and kept.lease is None:
            self._release(key)

    def is_leased(self, key: int) -> bool:
        """Say whether a sequence waits for its reader."""
        kept = self._kept.get(key)
        return kept is not None and kept.lease is not None

    def take_back(self, key: int) -> None:
        """End the lease of a sequence that has one."""
        lease = self._kept[key].lease
        assert lease is not None
        self._open_transfer().withdraw(lease)

    def greet(self) -> None:
        """Let decode workers that are new connect before a request has to wait for it: with NIXL that takes a second.

        They get an early offer of nothing.
        """
        decoders = set(self._peers.decoders)
        for reader in sorted(decoders - self._greeted):
            name = f"hello-{self._worker}-{reader}"
            job = GenerateJob(
                request_id=name,
                frontend=self._worker,
                ticket=0,
                model=self._peers.model,
                prompt=pack_u32([0]),
                stopping=Stopping(max_tokens=1),
            )
            self._offer_early(_Kept(job), job, reader, HELLO_TTL_S)
        self._greeted = decoders

    def send(self, key: int, token: int) -> None:
        """Offer the blocks, and send the job on behind its first token `token`; what fails is told by `on_end`."""
        kept = self._kept[key]
        try:
            offer = self._open_transfer().offer(kept.blocks, partial(self._on_lease_end, key))
        except BuswayError as error:
            self._fail(key, error)
            return
        kept.lease = offer.lease
        job = kept.job
        decode_job = msgspec.structs.replace(
            job, output=job.output + pack_u32([token]), handover=self._describe(kept, offer)
        )
        model = slug(job.model)
        subjects = self._bus.subjects
        if self._peers.has_router:
            subject = subjects.req(model, job.latency_class, slug(job.tenant))
        else:
            subject = subjects.work(model, "decode", ANY_WORKER, job.latency_class)
        self._append(subject, decode_job, "decode", max(1, round(offer.lease_s)), partial(self._on_appended, key))

    def _send_early(self, kept: _Kept) -> None:
        """Let who will probably go on fetch what there is; when that comes to nothing, nothing is lost."""
        reader = _choose(kept.job.request_id, self._peers.decoders)
        if reader is None:
            return
        kept.num_early = len(kept.blocks)
        job = kept.job
        early = msgspec.structs.replace(
            job,
            prompt=(job.prompt + job.output)[: 4 * (len(kept.blocks) * self._block_size + 1)],
            output=b"",
            sampling=Sampling(),
            stopping=Stopping(max_tokens=1),
            grammar="",
            prompt_logprobs=None,
        )
        self._offer_early(kept, early, reader, EARLY_TTL_S)

    def _offer_early(self, kept: _Kept, job: GenerateJob, reader: str, ttl_s: int) -> None:
        leases: list[int] = []
        try:
            offer = self._open_transfer().offer(kept.blocks, lambda ending: kept.early.difference_update(leases))
        except BuswayError:
            return
        leases.append(offer.lease)
        kept.early.add(offer.lease)
        job = msgspec.structs.replace(job, handover=self._describe(kept, offer, is_early=True))
        subject = self._bus.subjects.work(slug(job.model), "decode", reader, job.latency_class)
        self._append(subject, job, f"early{kept.num_early}", ttl_s, lambda answer: None)

    def _describe(self, kept: _Kept, offer: BlockOffer, *, is_early: bool = False) -> Handover:
        return Handover(
            worker=self._worker,
            offer=offer,
            num_blocks=len(kept.blocks),
            last_hash=kept.last_hash,
            is_early=is_early,
        )

    def _append(
        self,
        subject: str,
        job: GenerateJob,
        what: str,
        ttl_s: int,
        on_done: Callable[[AppendAck | BuswayError], None],
    ) -> None:
        msg_id = f"{job.request_id}:{job.attempt}:{what}"
        try:
            self._bus.append_soon(subject, encode(job), on_done, msg_id=msg_id, ttl_s=ttl_s)
        except BuswayError as error:
            on_done(error)

    def _open_transfer(self) -> Transfer:
        assert self._transfer is not None
        return self._transfer

    def _on_appended(self, key: int, answer: AppendAck | BuswayError) -> None:
        kept = self._kept.get(key)
        if isinstance(answer, BuswayError) and kept is not None and kept.lease is not None:
            log.warning("handover.not_sent", code=answer.code, reason=str(answer)[:300])
            self._open_transfer().withdraw(kept.lease)

    def _on_lease_end(self, key: int, ending: Ending) -> None:
        _outcomes[ending].inc()
        self._end(key, is_taken=ending == "released")

    def _fail(self, key: int, error: BuswayError) -> None:
        _outcomes["failed"].inc()
        log.warning("handover.not_offered", code=error.code, reason=str(error)[:300])
        self._end(key, is_taken=False)

    def _end(self, key: int, *, is_taken: bool) -> None:
        if key in self._kept:
            self._release(key)
            self._on_end(key, is_taken)

    def _release(self, key: int) -> None:
        """Give the blocks back, once nobody may read them any more."""
        for lease in tuple(self._kept.pop(key).early):
            self._open_transfer().withdraw(lease)
        self._engine.release(key)


def _choose(request_id: str, workers: Iterable[str]) -> str | None:
    """Return the same worker for all early offers of a request, as long as there are the same ones."""
    return min(workers, key=lambda worker: xxhash.xxh3_64_intdigest(f"{request_id} {worker}".encode()), default=None)
