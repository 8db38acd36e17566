"""Pure. What a tier below host memory is to the mover: a disk, a Redis, an object store, another worker."""

from collections.abc import Sequence
from enum import Enum
from typing import Literal, NamedTuple, Protocol

from bus.messages.kv import KvEvent
from offload.key import UNSEALED, BlockKey, seal

Medium = Literal["host", "disk", "remote"]
"""As KV events name it (`bus.messages.kv.Tier` without the device)."""


PAGE_BYTES = 4096


class Presence(Enum):
    """What `lookup` says of a block."""

    MISS = 0
    PENDING = 1
    """On its way in: worth a wait, not to be stored again."""
    HIT = 2


class Frame(NamedTuple):
    """A block in host memory: `view` is `frame_bytes(block_bytes)` long (see `offload.key`)."""

    key: BlockKey
    parent_hash: int
    """Of the block before; 0 at the start of a prompt. Of no meaning to `load`."""
    view: memoryview
    """`frame_bytes(block_bytes)` long."""
    pages: memoryview
    """The view and what is behind it, up to a whole number of aligned `PAGE_BYTES`: what unbuffered I/O moves."""

    def seal(self) -> None:
        """Give the frame its header, unless it has it: takes one pass over a new payload. For any thread."""
        if self.view[0] == UNSEALED:
            seal(self.view, self.key, self.parent_hash)


class Retention(NamedTuple):
    """How long blocks are worth keeping, beside what their use says."""

    priority: int = 0
    """-100 to 100: lower ones leave first."""
    pinned_until: float = 0.0
    """Unix seconds: not to be evicted before; 0 is no pin."""


ORDINARY = Retention()


class Tier(Protocol):
    """A place for frames, by key. Called in the event loop, by one mover.

    Nothing raises for what goes wrong in the tier (a full disk, a dead server, bytes that are not there): a block that
    was not stored or not loaded is a False. `load` and `store` return within a time limit of the tier's own; after
    they returned, or were cancelled, nobody touches the frames any more. The mover checks frames after each load
    (`offload.key.is_sound`), measures the time of each call, and leaves a tier alone that is slow or fails
    (`offload.gate`).
    """

    @property
    def name(self) -> str:
        """Label in metrics and configuration, from a closed set: `disk`, `redis`, `s3`, `peer`."""

    @property
    def medium(self) -> Medium: ...

    @property
    def owner(self) -> str:
        """Name under which workers tell of a tier that they share; empty: it is this worker's own."""

    def lookup(self, keys: Sequence[BlockKey]) -> list[Presence]:
        """Say what is here as far as is known without waiting; a HIT may still fail to load."""

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Note that a request uses these blocks of a chain, wherever they are found."""

    async def store(self, frames: Sequence[Frame], retention: Retention) -> list[bool]:
        """Keep frames of one space, those of a chain in its order; say of each whether it is (or was already) here.

        The tier seals what it keeps (`Frame.seal`), in a thread of its own. Either the whole frame can be loaded
        afterwards or nothing of it, whatever happens meanwhile.
        """

    async def retain(self, keys: Sequence[BlockKey], retention: Retention) -> None:
        """Keep blocks that are here for as long as this says, if that is longer than they would be kept."""

    async def load(self, frames: Sequence[Frame]) -> list[bool]:
        """Fill the views of these keys; say of each whether all its bytes came."""

    async def remove(self, keys: Sequence[BlockKey]) -> None:
        """Forget blocks, such as those whose frames were unsound."""

    def take_events(self) -> list[KvEvent]:
        """Return what came and went since the last call, in order, as this worker is to tell it."""
