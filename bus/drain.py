"""Pure. How fast the queue gets shorter: the ground of every estimate of a wait."""

import math

HALF_LIFE_S = 5.0
KNOWN_AFTER_S = 1.0
"""Busy time after which the rate is believed: who was just started finds workers full, and sees nothing leave at
first."""


class DrainRate:
    """What leaves per second while there is a queue, in tokens or requests; times without one only make it fade.

    What was learnt while workers died or were busy says nothing about the next queue, which may come much later.
    """

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0
        self._at: float | None = None

    def note(self, now: float, amount: int, *, had_queue: bool) -> None:
        """Take into account that `amount` left since the last call, during which requests waited or not."""
        elapsed_s = 0.0 if self._at is None else now - self._at
        self._at = now
        if not elapsed_s:
            return
        kept = math.exp2(-elapsed_s / HALF_LIFE_S)
        self._amount *= kept
        self._seconds *= kept
        if had_queue:
            self._amount += amount
            self._seconds += elapsed_s

    @property
    def per_s(self) -> float | None:
        """None until there was a queue for long enough, and something left it."""
        return self._amount / self._seconds if self._seconds >= KNOWN_AFTER_S and self._amount else None
