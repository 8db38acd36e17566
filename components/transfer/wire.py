"""Pure. What moves bytes between two workers, below leases and checks: NIXL or loopback."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from bus.messages.base import Hot
from bus.messages.transfer import AgentAddress

MAX_READS = 4
"""Reads under way at a time, for which a wire has to be ready: more would only make each of them late."""
BATCH_BYTES = 32 * 2**20
"""Read at a time (a few milliseconds of copying): then others have their turn, and a cancel is looked for."""

OnNote = Callable[[bytes], None]
"""Called in the event loop with what a peer sent by `Wire.notify`; the bytes may be anything."""


class LeaseNote(Hot, frozen=True, tag="lease_note"):
    """What a reader tells the source of an offer, beside the bus."""

    lease: int
    action: Literal["renew", "release"]


class Wire(Protocol):
    """One side; several calls may be under way at a time."""

    @property
    def address(self) -> AgentAddress:
        """Where peers find this side; it changes when the side had to be made anew."""

    async def connect(self, peer: AgentAddress) -> None:
        """Get ready to read from a peer; raise `TransferFailed` when it is not there. Idempotent."""

    async def read(self, peer: AgentAddress, theirs: Sequence[int], ours: Sequence[int], slot: int) -> int:
        """Copy block `theirs[i]` of a peer into our `ours[i]`, then return the peer's seal in `slot`.

        The seal is read after the last byte has arrived. However it ends, no byte arrives after that. Raises
        `TransferFailed`.
        """

    def notify(self, peer: AgentAddress, note: bytes) -> None:
        """Send a few bytes soon; nobody is told when that fails."""

    def watch(self, is_busy: bool) -> None:
        """Say whether peers may come soon (leases are out) or are being read from: then a poller is quick."""
