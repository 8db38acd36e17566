"""Pure. Whether a tier may be waited for: only one that was measured and has kept its word since."""

from enum import Enum

PROOFS = 3
"""Probes in a row that a tier has to answer before anybody waits for it."""
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
MAX_IDLE_S = 5.0
"""A tier that is in use, or that the gate finds too slow, is measured at least so often: more often at first, since the
first measurements may be those of a cold tier."""


class Trust(Enum):
    UNPROVEN = 0
    """Nobody waits for it; it is probed."""
    PROVEN = 1


class Breaker:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self.trust = Trust.UNPROVEN
        self._num_proofs = 0
        self._idle_s = self._pause_s = FIRST_PAUSE_S
        self._probe_at = 0.0

    def note_success(self, now: float) -> None:
        """A load came in time."""
        self._num_proofs += 1
        self._probe_at = now
        if self._num_proofs >= PROOFS:
            self.trust = Trust.PROVEN
            self._pause_s = FIRST_PAUSE_S
            self._probe_at += self._idle_s
            self._idle_s = min(MAX_IDLE_S, 2 * self._idle_s)

    def note_failure(self, now: float) -> bool:
        """A load failed or came too late; return whether the tier was trusted until now."""
        was_trusted = self.trust is Trust.PROVEN
        self.trust = Trust.UNPROVEN
        self._num_proofs = 0
        self._idle_s = FIRST_PAUSE_S
        self._probe_at = now + self._pause_s
        self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
        return was_trusted

    def is_probe_due(self, now: float) -> bool:
        """Say whether it is time to measure a load for which nobody waits."""
        return now >= self._probe_at
