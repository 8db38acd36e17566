"""Pure. Blocks that are offered to others: who may still read them, and until when."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from components.transfer.contract import Ending, OnEnd

NUM_SLOTS = 1024
"""Leases that can be out at a time; each has a seal, a word that peers can read."""
SEAL_BYTES = 8
LEASE_LIMIT_S = 300.0
"""No lease lasts longer, whoever renews it: a reader that never finishes holds nothing for ever."""


class Seals(Protocol):
    """Words of 64 bits at a fixed address."""

    def __len__(self) -> int: ...
    def __getitem__(self, slot: int, /) -> int: ...
    def __setitem__(self, slot: int, value: int, /) -> None: ...


@dataclass(slots=True)
class Lease:
    """Somebody's blocks are left as they are while `seals[slot] == id`."""

    id: int
    slot: int
    on_end: OnEnd
    expires_at: float
    limit_at: float


class Leases:
    """The leases of one worker, and their seals.

    Why a reader that checks the seal can trust what it read: the blocks of a lease are referenced in the engine until
    `on_end`, and the seal is cleared before `on_end` is called. A seal that is seen to be the lease's own, after the
    last byte was read, was therefore not cleared before that, and no block had been given back, much less written. An
    id is 64 random bits and never used twice: neither a later lease in the slot nor a process that has the place of a
    dead one shows it.
    """

    def __init__(self, seals: Seals, *, lease_s: float, draw: Callable[[], int]) -> None:
        """`seals` are `NUM_SLOTS` zeros, `draw` returns 64 random bits."""
        self._seals = seals
        self._lease_s = lease_s
        self._draw = draw
        self._leases: dict[int, Lease] = {}
        self._free = list(range(len(seals)))

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._leases))

    def grant(self, on_end: OnEnd, now: float) -> Lease | None:
        """Start a lease and seal it; None when all slots are taken."""
        if not self._free:
            return None
        number = 0
        while number == 0 or number in self._leases:
            number = self._draw()
        slot = self._free.pop()
        lease = Lease(number, slot, on_end, now + self._lease_s, now + LEASE_LIMIT_S)
        self._leases[number] = lease
        self._seals[slot] = number
        return lease

    def renew(self, number: int, now: float) -> bool:
        """Start the time of a lease again, within its limit; return whether it is there."""
        lease = self._leases.get(number)
        if lease is None:
            return False
        lease.expires_at = min(now + self._lease_s, lease.limit_at)
        return True

    def end(self, number: int, ending: Ending) -> bool:
        """End a lease: break its seal, then tell `on_end`; return whether it was there."""
        lease = self._leases.pop(number, None)
        if lease is None:
            return False
        self._seals[lease.slot] = 0
        self._free.append(lease.slot)
        lease.on_end(ending)
        return True

    def expire(self, now: float) -> int:
        """End the leases whose time is over; return how many."""
        late = [lease.id for lease in self._leases.values() if lease.expires_at <= now]
        for number in late:
            self.end(number, "expired")
        return len(late)

    def next_expiry(self) -> float:
        """Return when the first lease will expire; never: infinity."""
        return min((lease.expires_at for lease in self._leases.values()), default=float("inf"))
