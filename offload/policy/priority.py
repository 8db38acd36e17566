"""Pure. Levels of priority, each with an eviction policy of its own: low ones leave first."""

from collections.abc import Callable

from offload.policy.order import Policy

MAX_HIGH_PART = 0.5
"""Of all slots: blocks of high priority beyond that leave before ordinary ones do, or nothing else would ever stay."""
_LOW, _ORDINARY, _HIGH = 0, 1, 2


class Levels:
    """Three levels: below 0, 0, and above. A level costs memory once it is used."""

    def __init__(self, num_slots: int, make_policy: Callable[[], Policy]) -> None:
        self._num_slots = num_slots
        self._make_policy = make_policy
        self._levels: dict[int, Policy] = {_ORDINARY: make_policy()}
        self._level_of = bytearray(num_slots)

    def insert(self, slot: int, priority: int) -> None:
        """Add a slot that was filled just now."""
        level = _ORDINARY if priority == 0 else _HIGH if priority > 0 else _LOW
        if level not in self._levels:
            self._levels[level] = self._make_policy()
        self._level_of[slot] = level
        self._levels[level].insert(slot)

    def touch(self, slot: int) -> None:
        self._levels[self._level_of[slot]].touch(slot)

    def remove(self, slot: int) -> None:
        self._levels[self._level_of[slot]].remove(slot)

    def victim(self, is_busy: Callable[[int], bool]) -> int | None:
        """Return the slot to empty next, None when all are busy."""
        high = self._levels.get(_HIGH)
        order = [_LOW, _ORDINARY, _HIGH]
        if high is not None and len(high) > MAX_HIGH_PART * self._num_slots:
            order = [_LOW, _HIGH, _ORDINARY]
        for level in order:
            if level in self._levels and (slot := self._levels[level].victim(is_busy)) is not None:
                return slot
        return None
