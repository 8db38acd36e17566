"""Pure. What a worker asks of the transfer of KV blocks; NIXL and loopback keep the same contract."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from bus.messages.transfer import BlockOffer

Ending = Literal["released", "expired", "withdrawn"]
OnEnd = Callable[[Ending], None]
"""Told once, in the event loop, why a lease ended; from then on its blocks may be used for something else."""


class Source(Protocol):
    """An offer that is being used: its lease is renewed until it is left."""

    async def read(self, start: int, ours: Sequence[int]) -> None:
        """Copy the offered blocks `[start, start + len(ours))` into our blocks `ours`.

        When it returns, `ours` hold what was offered. However it ends, by an error or a cancel too, no byte arrives
        after that; after an error the content of `ours` is undefined. Raises `TransferFailed` (peer gone or
        unreachable, lease ended before the last byte was read) and `TransferTimeout`.
        """


class Transfer(Protocol):
    """One worker's side: it offers blocks, and reads those that others offer. All calls are made in the event loop."""

    def offer(self, blocks: Sequence[int], on_end: OnEnd) -> BlockOffer:
        """Lease blocks, full and referenced until `on_end`, to whoever gets the offer; returns at once.

        The lease ends when a reader releases it, `withdraw` is called, or nobody has renewed it for `lease_s`. Raises
        `EngineBusy` when too many leases are out.
        """

    def withdraw(self, lease: int) -> None:
        """End a lease now: whoever still reads it fails and uses nothing of it. Ended leases are no error."""

    def open(self, offer: BlockOffer) -> AbstractAsyncContextManager[Source]:
        """Use an offer of a peer: its lease is renewed while the context is open and released when it is left.

        Connects on entry. Raises `TransferRefused` when its blocks cannot be used here (another model, dtype, block
        size, layout or transport), `Malformed` for an offer that makes no sense, `TransferFailed` and
        `TransferTimeout` when the peer is not reached.
        """
