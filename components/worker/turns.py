"""Pure. Which latency class may have the next free slots: interactive before standard before batch, none of them never.

A lane delivers at once what it was granted, if it has anything: one whose grant stands has nothing to deliver. So a
class that has used up its grant gets another one when nobody of the classes before it waits, and nothing needs to be
known of what lies in the queues. While there are slots enough, grants are not used up and all of this costs nothing.
"""

from collections.abc import Mapping

from bus.messages.inference import LATENCY_CLASSES, LatencyClass

STANDS_S = 0.01
"""A grant that is not used for so long says that nobody waits: several times the way to the broker and back."""
SHARES: Mapping[LatencyClass, int] = {"batch": 20, "standard": 10}
"""Every so many jobs these classes come first: a tenth and a twentieth of the slots, as with a router."""


class Turns:
    """Follows grants and deliveries of the lanes that a worker shares with others, by class. Times are monotonic."""

    def __init__(self) -> None:
        self._left = dict.fromkeys(LATENCY_CLASSES, 0)
        self._since = dict.fromkeys(LATENCY_CLASSES, 0.0)
        """When what is left was granted, after there was nothing left."""
        self._num_jobs = 0

    def order(self) -> list[LatencyClass]:
        """Return the classes in the order in which they are to get the slots that are free now."""
        for name, period in SHARES.items():
            if self._num_jobs % period == period - 1:
                return sorted(LATENCY_CLASSES, key=lambda each: each != name)
        return list(LATENCY_CLASSES)

    def note_grant(self, latency_class: LatencyClass, num_messages: int, now: float) -> None:
        """Lanes of the class may deliver so many."""
        if num_messages > self._left[latency_class]:
            if not self._left[latency_class]:
                self._since[latency_class] = now
            self._left[latency_class] = num_messages

    def note_delivery(self, latency_class: LatencyClass) -> None:
        """A lane of the class delivered one."""
        self._num_jobs += 1
        self._left[latency_class] = max(0, self._left[latency_class] - 1)

    def has_nobody(self, latency_class: LatencyClass, now: float) -> bool:
        """Whether no request of the class waits, as far as can be told."""
        return self._left[latency_class] > 0 and now - self._since[latency_class] >= STANDS_S
