"""Pure. Evict what was used longest ago."""

from collections.abc import Callable

from offload.policy.order import Chains


class Lru:
    """One list, the least recently used first."""

    def __init__(self, num_slots: int) -> None:
        self._chains = Chains(num_slots, 1)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def insert(self, slot: int) -> None:
        self._chains.push(0, slot)
        self._size += 1

    def touch(self, slot: int) -> None:
        self._chains.unlink(slot)
        self._chains.push(0, slot)

    def remove(self, slot: int) -> None:
        self._chains.unlink(slot)
        self._size -= 1

    def victim(self, is_busy: Callable[[int], bool]) -> int | None:
        """See `Policy.victim`; busy slots that are met count as used."""
        for _ in range(self._size):
            slot = self._chains.first(0)
            assert slot is not None, "as many slots as counted"
            if not is_busy(slot):
                return slot
            self.touch(slot)
        return None
