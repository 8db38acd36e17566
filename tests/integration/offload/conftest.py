"""A stage for tiers: an engine's memory whose blocks say what they should hold, and a tier that does as it is told."""

import ctypes
import mmap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from bus.messages.kv import KvEvent
from offload.gate import Gate, LoadPlan
from offload.host import HostArena
from offload.key import BlockKey, space_of
from offload.mover import Mover, open_mover
from offload.promote import Link
from offload.tier import Frame, Medium, Presence, Retention, Tier

BLOCK_BYTES = 10_000
BLOCK_SIZE = 16
SPACE = space_of("model")


def links_of(*numbers: int, parent: int = 0) -> list[Link]:
    """Return a chain of blocks with these hashes."""
    return [Link(BlockKey(SPACE, number), before) for number, before in zip(numbers, (parent, *numbers), strict=False)]


def content(number: int) -> bytes:
    """Return what the block with this hash holds."""
    return number.to_bytes(8, "little") * (BLOCK_BYTES // 8)


class Device:
    """An engine's memory."""

    def __init__(self, num_blocks: int) -> None:
        self._memory = mmap.mmap(-1, num_blocks * BLOCK_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def addresses(self, blocks: Sequence[int]) -> list[int]:
        return [self._address + block * BLOCK_BYTES for block in blocks]

    def write(self, blocks: Sequence[int], numbers: Sequence[int]) -> None:
        """Compute these blocks."""
        for block, number in zip(blocks, numbers, strict=True):
            self._memory[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = content(number)

    def read(self, block: int) -> bytes:
        return self._memory[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]


class ToldTier:
    """A tier in memory that waits, fails and lies as a test tells it to."""

    medium: Medium = "remote"
    owner = ""

    def __init__(self, name: str = "redis") -> None:
        self.name = name
        self.frames: dict[BlockKey, bytes] = {}
        self.may_go_on = anyio.Event()
        self.may_go_on.set()
        self.is_dead = False
        self.num_loads = 0
        self.num_storing = 0
        self.stores: list[list[BlockKey]] = []
        self.retained: list[BlockKey] = []

    def lookup(self, keys: Sequence[BlockKey]) -> list[Presence]:
        return [Presence.HIT if key in self.frames else Presence.MISS for key in keys]

    def touch(self, keys: Sequence[BlockKey]) -> None:
        pass

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        self.num_storing += 1
        self.stores.append([frame.key for frame in frames])
        await self.may_go_on.wait()
        self.num_storing -= 1
        if self.is_dead:
            return [False] * len(frames)
        for frame in frames:
            frame.seal()
            self.frames[frame.key] = bytes(frame.view)
        return [True] * len(frames)

    async def retain(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        self.retained += keys

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        self.num_loads += 1
        await self.may_go_on.wait()
        if self.is_dead:
            return [False] * len(frames)
        for frame in frames:
            frame.view[:] = self.frames[frame.key]
        return [True] * len(frames)

    async def remove(self, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            self.frames.pop(key, None)

    def take_events(self) -> list[KvEvent]:
        return []


class Stage:
    """A mover with its parts."""

    def __init__(self, mover: Mover, host: HostArena, gate: Gate, device: Device) -> None:
        self.mover = mover
        self.host = host
        self.gate = gate
        self.device = device

    async def store(self, *numbers: int, parent: int = 0) -> None:
        """Compute blocks on the device and have them kept."""
        blocks = range(len(numbers))
        self.device.write(blocks, numbers)
        await self.mover.store(links_of(*numbers, parent=parent), self.device.addresses(blocks), Retention())

    async def fill(self, *numbers: int) -> int:
        """Load blocks as far as the gate lets; check all that are said to be there."""
        links = links_of(*numbers)
        blocks = range(100, 100 + len(numbers))
        self.device.write(blocks, [0xBAD] * len(numbers))
        plan = self.mover.plan(links)
        count = await self.mover.fill(links, self.device.addresses(blocks), plan) if plan.num_blocks else 0
        for block, number in list(zip(blocks, numbers, strict=True))[:count]:
            assert self.device.read(block) == content(number)
        return count

    def fill_at_once(self, *numbers: int, is_idle: bool) -> bool:
        """Load blocks without a wait; say whether that could be, and check them all."""
        blocks = range(len(numbers))
        self.device.write(blocks, [0xBAD] * len(numbers))
        addresses = self.device.addresses(blocks)
        if self.mover.fill_at_once(links_of(*numbers), addresses, is_idle=is_idle) is None:
            return False
        assert [self.device.read(block) for block in blocks] == [content(number) for number in numbers]
        return True

    def plan(self, *numbers: int) -> LoadPlan:
        return self.mover.plan(links_of(*numbers))

    def trust(self, tier: str, block_s: float = 0.01) -> None:
        """Let the gate have measured a tier."""
        for num_blocks in (1, 4, 16):
            self.gate.note_load(tier, num_blocks, num_blocks * block_s, 0.0)

    def forget_host(self, *numbers: int) -> None:
        """Let blocks leave host memory."""
        self.host.slots.remove([link.key for link in links_of(*numbers)])


@asynccontextmanager
async def open_stage(*tiers: Tier, host_blocks: int = 64, token_s: float = 0.01) -> AsyncIterator[Stage]:
    """Open a mover over these tiers; `token_s` is what computing takes."""
    host = HostArena(host_blocks * 12_288, BLOCK_BYTES)
    gate = Gate([tier.name for tier in tiers], block_size=BLOCK_SIZE)
    for tokens in (16, 64, 256):
        gate.note_step(tokens, 0, tokens * token_s)
    async with open_mover(host, tiers, gate, block_size=BLOCK_SIZE) as mover:
        yield Stage(mover, host, gate, Device(256))


@pytest.fixture
def stage() -> Callable[..., object]:
    return open_stage


@pytest.fixture
def told_tier() -> type[ToldTier]:
    return ToldTier


@pytest.fixture
def links() -> Callable[..., list[Link]]:
    return links_of
