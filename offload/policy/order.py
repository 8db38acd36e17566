"""Pure. What an eviction policy is, and the lists in arrays from which they are made: 8 bytes for each slot."""

from array import array
from collections.abc import Callable
from typing import Protocol


class Policy(Protocol):
    """Orders slots, each of which is in it at most once; every method takes constant time, amortized."""

    def insert(self, slot: int) -> None:
        """Add a slot that was filled just now."""

    def touch(self, slot: int) -> None:
        """Note that the block in a slot was used."""

    def remove(self, slot: int) -> None:
        """Take a slot out, evicted or not."""

    def victim(self, is_busy: Callable[[int], bool]) -> int | None:
        """Return the slot to empty next, which stays in until `remove`; None when all are busy."""

    def __len__(self) -> int: ...


class Chains:
    """Doubly linked lists over the slots `0 .. num_slots - 1`; each slot is in one of them or in none."""

    def __init__(self, num_slots: int, num_chains: int) -> None:
        self._num_slots = num_slots
        self._next = array("I", range(num_slots + num_chains))
        self._previous = array("I", self._next)

    def push(self, chain: int, slot: int) -> None:
        """Put a slot that is in no list at the end of one."""
        head = self._num_slots + chain
        last = self._previous[head]
        self._next[last] = self._previous[head] = slot
        self._previous[slot], self._next[slot] = last, head

    def unlink(self, slot: int) -> None:
        """Take a slot out of its list."""
        before, after = self._previous[slot], self._next[slot]
        self._next[before], self._previous[after] = after, before
        self._next[slot] = self._previous[slot] = slot

    def first(self, chain: int) -> int | None:
        """Return the first slot of a list, None if it is empty."""
        slot = self._next[self._num_slots + chain]
        return slot if slot < self._num_slots else None
