"""Pure. Which of the routers of a model takes its requests: one at a time, the others are warm and wait.

Routers that decide in the same millisecond cannot hear each other, and a burst that is split among them ends at the
same few workers. So one leads and says so ten times a second; when it falls silent, the first of the others to notice
goes on. Two that lead at a time do no harm but that: the one with the smaller id stays.
"""

from zlib import crc32

SILENCE_S = 0.25
"""A leader that says nothing for so long is gone."""
JITTER_S = 0.1
"""Each router waits up to so much longer, always the same: seldom do two go on at once."""


class Lead:
    """What one router knows of who leads. Times are those of the event loop."""

    def __init__(self, router: str, now: float) -> None:
        self.is_leading = False
        self._router = router
        self._patience_s = SILENCE_S + JITTER_S * (crc32(router.encode()) % 1024) / 1024
        self._heard_at = now
        self._leader = ""

    def hear(self, router: str, now: float) -> None:
        """Another router says that it leads: follow it, unless both lead and this one is to stay."""
        if self.is_leading and router > self._router:
            return
        self.is_leading = False
        self._leader = router
        self._heard_at = now

    def lose(self, router: str, now: float) -> None:
        """That router is gone: if it led, nobody waits for its silence."""
        if router == self._leader:
            self._heard_at = min(self._heard_at, now - SILENCE_S)

    def look(self, now: float) -> None:
        """Lead when nobody does."""
        if now - self._heard_at >= self._patience_s:
            self.is_leading = True

    def excuse_silence(self, now: float) -> None:
        """It was this process that did not listen."""
        self._heard_at = now
