"""I/O. The host memory of other workers as a tier: blocks are asked for on the bus, and read beside it.

Frames go from arena to arena, header and checksum included, so whatever a peer does, nothing but the block that was
asked for is ever used. Who has what is told by the workers' own block events.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import structlog

from bus.codec import Codec, codec, encode
from bus.errors import BusUnavailable, BuswayError, EngineBusy, Malformed
from bus.gone import watch_gone
from bus.messages.base import pack_u64, unpack_u32, unpack_u64
from bus.messages.fleet import WorkerCard
from bus.messages.kv import BlocksCleared, BlocksStored, KvBatch, KvEvent
from bus.messages.transfer import PeerAnswer, PeerQuery
from bus.metrics import MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming
from bus.registry import watch_cards
from bus.subjects import slug
from components.engines.exchange import BlockMemory
from components.transfer import Ending, Transfer
from kv_events.index import PEERS
from offload.holders import Holders
from offload.host import HostArena, stride_bytes
from offload.key import SPACE_BYTES, BlockKey, Space
from offload.tier import Frame, Medium, Presence, Retention

MAX_ASKED = 256
"""Blocks of one question: who offers them passes over each once."""
ANSWER_S = 0.25
LOAD_S = 2.0
RETRY_S = 1.0
"""Until a registry that was not reached is asked again."""

log = structlog.get_logger()
_batches = codec(KvBatch)
_queries = codec(PeerQuery)
_answers = codec(PeerAnswer)
_events = Codec[KvEvent](KvEvent)


def arena_memory(host: HostArena, fingerprint: str) -> BlockMemory:
    """Return the frames of host memory as blocks that can be transferred, to other arenas only."""
    size = stride_bytes(host.block_bytes)
    num_slots = host.slots.num_slots
    return BlockMemory(host.address, size, num_slots, "cpu", f"{fingerprint}/frames", host.buffer)


class PeerTier:
    """A `Tier` while `run` runs. Each worker keeps its own blocks; to store them here is to make them readable."""

    name = "peer"
    medium: Medium = "remote"
    owner = PEERS

    def __init__(self, bus: Bus, host: HostArena, transfer: Transfer, *, model: str, worker: str) -> None:
        """`model` is a slug; `transfer` is over the `arena_memory` of `host`."""
        self._bus = bus
        self._host = host
        self._transfer = transfer
        self._model = model
        self._worker = worker
        self._holders = Holders()
        self._present: set[str] = set()

    def lookup(self, keys: Sequence[BlockKey]) -> list[Presence]:
        return [Presence.MISS if self._holders.find(key.block_hash) is None else Presence.HIT for key in keys]

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        """Move nothing: sealed as they are now, others can read these frames from host memory."""
        return [True] * len(frames)

    async def retain(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        """Whoever has these blocks was told by the requests that it served."""

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        """Read from all holders at once, for `LOAD_S` at most."""
        parts: dict[tuple[str, Space], list[int]] = defaultdict(list)
        for position, frame in enumerate(frames):
            holder = self._holders.find(frame.key.block_hash)
            if holder is not None:
                parts[holder, frame.key.space].append(position)
        done = [False] * len(frames)
        with anyio.move_on_after(LOAD_S):
            async with anyio.create_task_group() as tasks:
                for (holder, _), positions in parts.items():
                    for first in range(0, len(positions), MAX_ASKED):
                        tasks.start_soon(self._read, holder, frames, positions[first : first + MAX_ASKED], done)
        return done

    async def remove(self, keys: Sequence[BlockKey]) -> None:
        """Ask nobody for these any more; they are others' to remove."""
        for key in keys:
            holder = self._holders.find(key.block_hash)
            if holder is not None:
                self._holders.remove(holder, [key.block_hash])

    def take_events(self) -> list[KvEvent]:
        return []

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Whoever has these blocks goes by its own use of them."""

    async def run(self) -> None:
        """Follow what others have, and let them read what is here, until cancelled."""
        subjects = self._bus.subjects
        subscriptions = [
            self._bus.subscribe(subjects.peer(self._worker), self._on_query),
            self._bus.subscribe(subjects.kv(self._model, "*"), self._on_batch),
        ]
        try:
            while True:
                try:
                    await self._follow()
                except BusUnavailable as error:
                    log.warning("peers.not_followed", reason=str(error))
                    await anyio.sleep(RETRY_S)
        finally:
            for subscription in subscriptions:
                subscription.unsubscribe()

    async def _follow(self) -> None:
        """Hear who is there and what they told lately; raise `BusUnavailable` when the registry is not reached."""
        async with watch_cards(self._bus, "worker", WorkerCard, self._on_card):
            try:
                await self._bus.replay("KV", self._bus.subjects.kv(self._model, "*"), self._on_batch)
            except BuswayError as error:
                log.warning("peers.not_replayed", reason=str(error))
            with watch_gone(self._bus, self._forget):
                await anyio.sleep_forever()

    async def _read(self, holder: str, frames: Sequence[Frame], positions: list[int], done: list[bool]) -> None:
        """Read the first of these frames, as many as the holder has; one that does not answer has nothing."""
        keys = [frames[position].key for position in positions]
        slots = [slot for key in keys if (slot := self._host.slots.find(key)) is not None]
        assert len(slots) == len(keys), "frames to fill are in the arena"
        query = PeerQuery(space=keys[0].space, block_hashes=pack_u64([key.block_hash for key in keys]))
        subject = self._bus.subjects.peer(holder)
        count = 0
        try:
            reply = await self._bus.request(subject, encode(query), timeout_s=ANSWER_S)
            offer = _answers.decode(reply.payload).offer
            if offer is not None:
                count = min(len(unpack_u32(offer.blocks)), len(slots))
                async with self._transfer.open(offer) as source:
                    await source.read(0, slots[:count])
        except BuswayError as error:
            log.info("peer.not_read", peer=holder, num_blocks=len(keys), reason=str(error))
            self._holders.forget(holder)
            return
        for position in positions[:count]:
            done[position] = True
        self._holders.remove(holder, [key.block_hash for key in keys[count : count + 1]])

    def _on_query(self, message: Incoming) -> None:
        """Offer what is here of the blocks that a peer asks for; they stay in place until it has read them."""
        try:
            query = _queries.decode(message.payload)
            hashes = unpack_u64(query.block_hashes)
            if len(query.space) != SPACE_BYTES or not hashes or len(hashes) > MAX_ASKED or not message.reply:
                raise Malformed("no question for blocks")
        except Malformed:
            MALFORMED_MESSAGES.labels("peer").inc()
            return
        slots = self._host.slots.prepare_load([BlockKey(Space(query.space), block) for block in hashes])
        answer = PeerAnswer()
        if slots:
            for slot in slots:
                self._host.frame(slot).seal()
            release: Callable[[Ending], None] = partial(self._release, slots)
            try:
                answer = PeerAnswer(offer=self._transfer.offer(slots, release))
            except EngineBusy:
                self._host.slots.complete_load(slots)
        try:
            self._bus.publish(message.reply, encode(answer))
        except (BusUnavailable, Malformed):
            pass  # the lease ends by itself

    def _release(self, slots: Sequence[int], _: Ending) -> None:
        self._host.slots.complete_load(slots)

    def _on_card(self, worker: str, card: WorkerCard | None) -> None:
        if card is None:
            self._forget(worker)
        elif slug(card.model) == self._model and worker != self._worker:
            self._present.add(worker)

    def _forget(self, worker: str) -> None:
        if worker in self._present:
            self._present.discard(worker)
            self._holders.forget(worker)

    def _on_batch(self, message: Incoming) -> None:
        """Note what other workers have in host memory; what is lost of this costs a miss, or a question in vain."""
        try:
            batch = _batches.decode(message.payload)
            if batch.worker not in self._present or not message.subject.endswith(f".{batch.worker}"):
                return  # the stream remembers the dead, too
            for raw in batch.events:
                event = _events.decode(raw)
                if event.tier != "host":
                    continue
                if isinstance(event, BlocksCleared):
                    self._holders.forget(batch.worker)
                elif isinstance(event, BlocksStored):
                    self._holders.store(batch.worker, unpack_u64(event.block_hashes))
                else:
                    self._holders.remove(batch.worker, unpack_u64(event.block_hashes))
        except Malformed:
            MALFORMED_MESSAGES.labels("kv").inc()
