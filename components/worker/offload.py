"""I/O. An engine with tiers below it: what it computed is kept elsewhere too, and comes back where that is faster.

To the worker this is an engine like any other. Requests whose first blocks a tier has wait for them outside the batch;
blocks that became full are copied out while steps go on.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import anyio
import msgspec
from anyio.abc import TaskGroup

from bus.errors import EngineDied
from bus.messages.base import unpack_u64
from bus.messages.kv import BlocksRemoved, BlocksStored, KvEvent
from components.engines import Engine, EngineLoad, EngineRequest, EngineSpec, Step
from components.engines.exchange import BlockMemory, Fill, Note, Pinned, ignore_note
from components.worker.origins import Origin, Origins, retention_of
from kv_events.hashing import block_hashes, salt_hash
from offload.gate import Gate
from offload.key import BlockKey, Space, space_of
from offload.mover import Mover
from offload.promote import Link
from offload.spawn import Spawner
from offload.tier import ORDINARY, Retention

GATHER_S = 0.02
GATHER_BLOCKS = 8
"""Fewer blocks than that, such as those of sequences that generate, wait so long for others to be copied out with."""
MAX_PINNED = 512
"""Blocks that are kept in the engine at a time because they are being copied out, and an eighth of all at most."""
MIN_ORIGINS = 65_536
MAX_BOOKS = 256
"""What waits for the next step beside it: with more, none of it waits."""
FIRST_TOKEN = 1 << 32
"""Numbers of pins from here on are ours."""


class _Chain(msgspec.Struct, frozen=True):
    """Blocks that are to be copied out, in order."""

    links: list[Link]
    retention: Retention


class _Asked(msgspec.Struct, frozen=True):
    """A request that the engine may ask to fill."""

    chain: list[Link]
    """Of its prompt."""
    idle_since: float | None
    """When it was submitted, if the engine had nothing to do then."""


class _Pin:
    """A question to the engine where blocks are."""

    def __init__(self, chain: _Chain) -> None:
        self.chain = chain
        self.answered = anyio.Event()
        self.blocks: list[int] = []


class TieredEngine:
    """Implements `components.engines.Engine` around an engine that has `memory`. Made by `components.worker.tiers`."""

    def __init__(
        self, engine: Engine, memory: BlockMemory, mover: Mover, gate: Gate, tasks: TaskGroup, *, model: str
    ) -> None:
        """`model` is the name that goes into block hashes."""
        spec = engine.spec
        self._engine = engine
        self._memory = memory
        self._mover = mover
        self._gate = gate
        self._spawner = Spawner(tasks)
        self._model = model
        self._block_size = spec.block_size
        self._origins = Origins(max(MIN_ORIGINS, 2 * spec.num_blocks))
        self._on_device: set[int] = set()
        self._to_fill: dict[int, _Asked] = {}
        """By key."""
        self._books: list[Callable[[], None]] = []
        """What is done when the tokens of a step are told: no first token waits for it."""
        self._tokens = count(FIRST_TOKEN)
        self._pins: dict[int, _Pin] = {}
        self._failure: EngineDied | None = None
        """Its memory cannot be reached: `run` raises this when the next step is told."""
        self._stored: deque[_Chain] = deque()
        self._num_stored = 0
        self._has_stored = anyio.Event()

    @property
    def spec(self) -> EngineSpec:
        return self._engine.spec

    @property
    def memory(self) -> BlockMemory:
        return self._memory

    def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`; what the tiers have of the prompt begins to come at once, if that will pay."""
        if request.fill_blocks or request.prompt_logprobs is not None:
            self._engine.submit(request)
            return
        chain, retention = self._chain_of(request)
        num_here = next((i for i, link in enumerate(chain) if link.key.block_hash not in self._on_device), len(chain))
        fillable = chain[num_here : (len(request.prompt) + len(request.output) - 1) // self._block_size]
        is_busy = self._is_busy()
        plan = self._mover.plan(fillable, start=num_here, is_busy=is_busy)
        if plan.num_blocks:
            idle_since = None if is_busy else time.perf_counter()
            self._engine.submit(msgspec.structs.replace(request, fill_blocks=num_here + plan.num_blocks))
            self._to_fill[request.key] = _Asked(chain, idle_since)
            self._mover.prefetch(fillable, plan)
        else:
            self._engine.submit(request)
        self._do_later(partial(self._keep_on, chain, num_here, retention))

    def abort(self, key: int) -> None:
        self._to_fill.pop(key, None)
        self._engine.abort(key)

    def filled(self, key: int, num_blocks: int) -> None:
        self._engine.filled(key, num_blocks)

    def release(self, key: int) -> None:
        self._engine.release(key)

    def pin(self, token: int, hashes: Sequence[int]) -> None:
        self._engine.pin(token, hashes)

    def unpin(self, token: int) -> None:
        self._engine.unpin(token)

    def load(self) -> EngineLoad:
        """Return the present load, with what loading from each tier costs."""
        return msgspec.structs.replace(self._engine.load(), tiers=self._mover.rates())

    def take_events(self) -> list[KvEvent]:
        """Return the block events of the engine and of its tiers since the last call."""
        events = self._engine.take_events()
        for event in events:
            if isinstance(event, BlocksStored):
                hashes = unpack_u64(event.block_hashes).tolist()
                self._on_device.update(hashes)
                if (origin := self._origins.find(event.parent_hash, hashes)) is not None:
                    links = _links(origin.space, hashes, event.parent_hash)
                    self._do_later(partial(self._copy_out, _Chain(links, origin.retention)))
            elif isinstance(event, BlocksRemoved):
                self._on_device.difference_update(unpack_u64(event.block_hashes))
        return events + self._mover.take_events()

    async def run(self, on_step: Callable[[Step], None], on_note: Callable[[Note], None] = ignore_note) -> None:
        """See `Engine.run`."""

        def take_step(step: Step) -> None:
            if self._failure is not None:
                raise self._failure
            on_step(step)  # first: somebody waits for these tokens
            self._gate.note_step(step.stats.prefill_tokens, step.stats.prefill_context, step.stats.duration_s)
            for ended in step.ended:
                self._to_fill.pop(ended.key, None)
            self._keep_books()

        def take_note(note: Note) -> None:
            if isinstance(note, Pinned) and (pin := self._pins.get(note.token)) is not None:
                pin.blocks = note.blocks
                pin.answered.set()
            elif isinstance(note, Fill) and (asked := self._to_fill.pop(note.key, None)) is not None:
                if not self._fill_at_once(note, asked):
                    self._spawner.start(partial(self._fill, note, asked))
            else:
                on_note(note)

        self._spawner.start(self._copy_stored)
        await self._engine.run(take_step, take_note)

    def _fill_at_once(self, fill: Fill, asked: _Asked) -> bool:
        """Answer the engine now, without a task that would begin later than this ends; say whether that could be."""
        num_blocks = len(fill.blocks)
        links = asked.chain[fill.start : fill.start + num_blocks]
        is_idle = asked.idle_since is not None
        copied_s = self._mover.fill_at_once(links, self._addresses(fill.blocks), is_idle=is_idle)
        if copied_s is None:
            return False
        self._engine.filled(fill.key, num_blocks)
        turn_s = None if asked.idle_since is None else time.perf_counter() - asked.idle_since - copied_s
        self._do_later(partial(self._mover.note_filled, num_blocks, copied_s, turn_s))
        return True

    async def _fill(self, fill: Fill, asked: _Asked) -> None:
        """Answer the engine, in any case: with what came in time."""
        links = asked.chain[fill.start : fill.start + len(fill.blocks)]
        num_blocks = 0
        try:
            plan = self._mover.plan(links, start=fill.start, is_busy=asked.idle_since is None)
            if plan.num_blocks:
                addresses = self._addresses(fill.blocks[: plan.num_blocks])
                num_blocks = await self._mover.fill(links, addresses, plan, idle_since=asked.idle_since)
        except EngineDied as error:
            self._failure = error
        finally:
            self._engine.filled(fill.key, num_blocks)

    def _do_later(self, work: Callable[[], None]) -> None:
        self._books.append(work)
        if len(self._books) > MAX_BOOKS:
            self._keep_books()

    def _keep_books(self) -> None:
        books, self._books = self._books, []
        for work in books:
            work()

    def _is_busy(self) -> bool:
        load = self._engine.load()
        return load.running > 0 or load.waiting > 0

    def _chain_of(self, request: EngineRequest) -> tuple[list[Link], Retention]:
        """Return the full blocks of a request, and how long they are to be kept."""
        root = salt_hash(self._model, request.cache_salt)
        hashes = block_hashes(request.prompt + request.output, self._block_size, root)
        origin = Origin(
            space_of(self._memory.fingerprint, request.cache_salt), retention_of(request.hints, time.time())
        )
        self._origins.note(hashes, origin)
        return _links(origin.space, hashes, 0), origin.retention

    def _keep_on(self, chain: list[Link], num_here: int, retention: Retention) -> None:
        """Have the tiers keep what is used again: hot blocks on the device would grow cold below it, and leave."""
        self._mover.touch(chain)
        if num_here:
            self._copy_out(_Chain(chain[:num_here], retention))
        if retention != ORDINARY:
            self._mover.retain(chain, retention)

    def _copy_out(self, chain: _Chain) -> None:
        """Have blocks copied to host memory that are not there; the oldest of too many are left out."""
        links = self._mover.missing(chain.links)
        if not links:
            return
        self._stored.append(_Chain(links, chain.retention))
        self._num_stored += len(links)
        while self._num_stored > self._memory.num_blocks:
            self._num_stored -= len(self._stored.popleft().links)
        self._has_stored.set()

    async def _copy_stored(self) -> None:
        """Copy out what became full, until cancelled."""
        while True:
            await self._has_stored.wait()
            if self._num_stored < GATHER_BLOCKS:
                await anyio.sleep(GATHER_S)
            self._has_stored = anyio.Event()
            while self._stored:
                await self._copy_batch(self._take_batch())

    def _take_batch(self) -> list[_Chain]:
        room = max(1, min(MAX_PINNED, self._memory.num_blocks // 8))
        batch: list[_Chain] = []
        while self._stored and room:
            chain = self._stored.popleft()
            part = _Chain(chain.links[:room], chain.retention)
            if len(chain.links) > room:
                self._stored.appendleft(_Chain(chain.links[room:], chain.retention))
            batch.append(part)
            room -= len(part.links)
            self._num_stored -= len(part.links)
        return batch

    async def _copy_batch(self, batch: list[_Chain]) -> None:
        """Ask for all blocks at once, since the engine answers between two steps; then copy those that are there."""
        pins = {next(self._tokens): _Pin(chain) for chain in batch}
        self._pins |= pins
        try:
            for token, pin in pins.items():
                self._engine.pin(token, [link.key.block_hash for link in pin.chain.links])
            for token, pin in pins.items():
                await pin.answered.wait()
                links = pin.chain.links[: len(pin.blocks)]
                await self._mover.store(links, self._addresses(pin.blocks), pin.chain.retention)
                self._unpin_copied(token)
        except EngineDied as error:
            self._failure = error
        finally:
            for token in pins.keys() & self._pins.keys():
                self._unpin_copied(token)

    def _unpin_copied(self, token: int) -> None:
        del self._pins[token]
        self._engine.unpin(token)

    def _addresses(self, blocks: Sequence[int]) -> list[int]:
        memory = self._memory
        return [memory.address + block * memory.block_bytes for block in blocks]


def _links(space: Space, hashes: Sequence[int], parent_hash: int) -> list[Link]:
    return [
        Link(BlockKey(space, block_hash), parent)
        for block_hash, parent in zip(hashes, (parent_hash, *hashes), strict=False)
    ]
