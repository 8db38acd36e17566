"""I/O. One worker's side of the transfer of KV blocks: leases for what it offers, checked reads of others' offers."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
import structlog

from bus.codec import codec, encode
from bus.errors import EngineBusy, Malformed, TransferFailed, TransferTimeout
from bus.messages.base import pack_u32
from bus.messages.transfer import BlockOffer
from bus.metrics import (
    MALFORMED_MESSAGES,
    TRANSFER_BLOCKS,
    TRANSFER_BYTES,
    TRANSFER_LEASES,
    TRANSFER_OPEN_LEASES,
    TRANSFER_READS,
    TRANSFER_SECONDS,
    TRANSFER_WAIT,
)
from components.transfer.checks import allowed_s, check_offer, check_read
from components.transfer.contract import Ending, OnEnd
from components.transfer.leases import Leases
from components.transfer.wire import MAX_READS, LeaseNote, Wire

CONNECT_S = 2.0
RENEWALS = 3
"""Renewals within one lease: two may be lost."""

_notes = codec(LeaseNote)
log = structlog.get_logger()


class TransferAgent:
    """Implements `components.transfer.contract.Transfer` over a wire."""

    def __init__(self, wire: Wire, leases: Leases, *, lease_s: float) -> None:
        self._wire = wire
        self._lease_s = lease_s
        self._leases = leases
        self._turns = anyio.Semaphore(MAX_READS)
        self._sources: dict[BlockSource, None] = {}
        self._changed = anyio.Event()

    def offer(self, blocks: Sequence[int], on_end: OnEnd) -> BlockOffer:
        """Lease blocks to whoever gets the offer; raise `EngineBusy` when too many leases are out."""
        lease = self._leases.grant(self._counted(on_end), time.monotonic())
        if lease is None:
            raise EngineBusy(f"{len(self._leases)} leases of KV blocks are out, which is as many as there may be")
        TRANSFER_OPEN_LEASES.set(len(self._leases))
        self._note_change()
        return BlockOffer(
            source=self._wire.address,
            lease=lease.id,
            slot=lease.slot,
            blocks=pack_u32(blocks),
            lease_s=self._lease_s,
        )

    def withdraw(self, lease: int) -> None:
        """End a lease now; one that has ended is no error."""
        self._leases.end(lease, "withdrawn")

    @asynccontextmanager
    async def open(self, offer: BlockOffer) -> AsyncIterator["BlockSource"]:
        """Connect to the source of an offer, and renew the lease until the context is left, then release it."""
        blocks = check_offer(offer, self._wire.address)
        with _limited(CONNECT_S, f"worker {offer.source.agent} did not answer within {CONNECT_S} s"):
            await self._wire.connect(offer.source)
        source = BlockSource(self._wire, self._turns, offer, blocks)
        self._sources[source] = None
        self._note_change()
        source.renew(time.monotonic())
        try:
            yield source
        finally:
            del self._sources[source]
            source.release()
            self._note_change()

    async def run(self) -> None:
        """End leases when they expire and renew those of open sources, until cancelled; sleeps while there are none."""
        while True:
            now = time.monotonic()
            if self._leases.expire(now):
                log.warning("leases.expired", num_left=len(self._leases))
            for source in self._sources:
                if source.renew_at <= now:
                    source.renew(now)
            wake_at = min([self._leases.next_expiry(), *(source.renew_at for source in self._sources)])
            with anyio.move_on_after(wake_at - now):
                await self._changed.wait()
                self._changed = anyio.Event()

    def close(self) -> None:
        """End all leases: nobody can read here any more."""
        for lease in self._leases:
            self._leases.end(lease, "withdrawn")

    def _counted(self, on_end: OnEnd) -> OnEnd:
        def end(ending: Ending) -> None:
            TRANSFER_LEASES.labels(ending).inc()
            TRANSFER_OPEN_LEASES.set(len(self._leases))
            self._note_change()
            on_end(ending)

        return end

    def _note_change(self) -> None:
        self._wire.watch(bool(self._leases or self._sources))
        self._changed.set()


def take_note(leases: Leases, note: bytes) -> None:
    """Take what a reader sent; bytes that make no sense are counted and dropped."""
    try:
        message = _notes.decode(note)
    except Malformed:
        MALFORMED_MESSAGES.labels("transfer").inc()
        return
    if message.action == "release":
        leases.end(message.lease, "released")
    else:
        leases.renew(message.lease, time.monotonic())


class BlockSource:
    """Implements `components.transfer.contract.Source`: one offer in use."""

    def __init__(self, wire: Wire, turns: anyio.Semaphore, offer: BlockOffer, blocks: list[int]) -> None:
        self._wire = wire
        self._turns = turns
        self._offer = offer
        self._blocks = blocks
        self.renew_at = 0.0

    async def read(self, start: int, ours: Sequence[int]) -> None:
        """Copy the offered blocks `[start, start + len(ours))` into `ours`; see the contract for what it raises."""
        check_read(start, ours, len(self._blocks), self._wire.address.num_blocks)
        if not ours:
            return
        source = self._offer.source
        num_bytes = len(ours) * source.block_bytes
        limit_s = allowed_s(num_bytes)
        asked_at = time.monotonic()
        with _counted_failures():
            async with self._turns:
                begun_at = time.monotonic()
                with _limited(
                    limit_s, f"{len(ours)} KV blocks of {source.agent} did not arrive within {limit_s:.1f} s"
                ):
                    theirs = self._blocks[start : start + len(ours)]
                    seal = await self._wire.read(source, theirs, ours, self._offer.slot)
            if seal != self._offer.lease:
                raise _Stale(f"worker {source.agent} took its KV blocks back before they were read")
        TRANSFER_WAIT.observe(begun_at - asked_at)
        TRANSFER_SECONDS.observe(time.monotonic() - begun_at)
        TRANSFER_READS.labels("read").inc()
        TRANSFER_BLOCKS.inc(len(ours))
        TRANSFER_BYTES.inc(num_bytes)

    def renew(self, now: float) -> None:
        """Ask the source to keep the blocks for another `lease_s`."""
        self.renew_at = now + self._offer.lease_s / RENEWALS
        self._wire.notify(self._offer.source, encode(LeaseNote(self._offer.lease, "renew")))

    def release(self) -> None:
        """Tell the source that nobody needs the blocks any more."""
        self._wire.notify(self._offer.source, encode(LeaseNote(self._offer.lease, "release")))


class _Stale(TransferFailed):
    """The lease ended before its blocks were read."""


@contextmanager
def _limited(limit_s: float, message: str) -> Iterator[None]:
    try:
        with anyio.fail_after(limit_s):
            yield
    except TimeoutError as error:
        raise TransferTimeout(message) from error


@contextmanager
def _counted_failures() -> Iterator[None]:
    try:
        yield
    except _Stale:
        TRANSFER_READS.labels("stale").inc()
        raise
    except TransferTimeout:
        TRANSFER_READS.labels("timeout").inc()
        raise
    except TransferFailed:
        TRANSFER_READS.labels("failed").inc()
        raise
    except anyio.get_cancelled_exc_class():
        TRANSFER_READS.labels("cancelled").inc()
        raise
