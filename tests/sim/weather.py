"""Pure. What happens to messages on the way: each takes a while, and in bad weather some are lost, doubled or late."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from bus.codec import codec
from bus.messages.inference import Cancel
from bus.messages.route import RouteBatch
from bus.testing.faults import Action, Fate
from components.worker.jobs import read_command
from offload.key import BlockKey
from tests.sim.trace import Trace

NEXT_S = 1e-6
"""The least time between two messages to the same receiver, which come in order."""
KEPT_SAMPLES = 32
INTRUDER = "intruder"
"""Who sends garbage."""

_routes = codec(RouteBatch)


class Climate(msgspec.Struct):
    """Shares of messages to which something happens, 0 to 1."""

    drop: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    append_lost: float = 0.0
    append_unanswered: float = 0.0
    ack_lost: float = 0.0
    read_lost: float = 0.0
    read_slow: float = 0.0
    store_lost: float = 0.0
    store_slow: float = 0.0
    store_flip: float = 0.0


class Weather:
    """Implements `bus.testing.faults.Faults` with chances drawn from a seed. `climate` is what they are at present."""

    def __init__(self, rng: Random, trace: Trace, clock: Callable[[], float]) -> None:
        self.climate = Climate()
        self.fuses: dict[str, tuple[int, Callable[[], None]]] = {}
        """By connection: after how many more things that it does its process dies, and who sees to that."""
        self.samples: list[tuple[str, bytes]] = []
        """Messages that were sent lately, by subject: what garbage is made of."""
        self.deliveries: Counter[tuple[str, bytes]] = Counter()
        """How often each job was handed out."""
        self._leader = ""
        self._rng = rng
        self._trace = trace
        self._clock = clock
        self._last_at: dict[str, float] = {}

    def sends(self, action: Action, connection: str, subject: str, payload: bytes) -> bool:
        """Note what a connection does; False when its fuse burnt down, or when an ack gets lost."""
        fuse = self.fuses.get(connection)
        if fuse is not None:
            left, die = fuse
            if left == 0:
                del self.fuses[connection]
                die()
                return False
            self.fuses[connection] = (left - 1, die)
        if action == "ack" and self._happens(self.climate.ack_lost):
            self._trace.note("fault.ack_lost", f"{connection} {subject}")
            return False
        self._trace.note_event(action, connection, subject, payload)
        self._note_path(action, connection, subject, payload)
        if payload:
            self.samples.append((subject, payload))
            if len(self.samples) > KEPT_SAMPLES:
                del self.samples[self._rng.randrange(KEPT_SAMPLES)]
        return True

    def arrives(self, action: Action, connection: str, subject: str, payload: bytes) -> None:
        """Note what a connection is handed."""
        self._trace.note_event(action, connection, subject, payload)
        if action == "deliver":
            self.deliveries[subject, payload] += 1
            if self.deliveries[subject, payload] > 1:
                self._trace.counts["path.redelivered"] += 1

    def delays(self, receiver: str, subject: str) -> Sequence[float]:
        """Draw how long each copy of a message takes; without `reorder` they keep their order to one receiver."""
        climate, rng, now = self.climate, self._rng, self._clock()
        if self._happens(climate.drop):
            self._trace.note("fault.drop", f"{receiver} {subject}")
            return ()
        delay_s = 0.0001 + 0.0004 * rng.random()
        if self._happens(climate.delay):
            self._trace.note("fault.delay", f"{receiver} {subject}")
            delay_s += 0.3 * rng.random()
        if self._happens(climate.reorder):
            self._trace.note("fault.reorder", f"{receiver} {subject}")
            return (delay_s + 0.02 * rng.random(),)
        at = max(now + delay_s, self._last_at.get(receiver, 0.0) + NEXT_S)
        self._last_at[receiver] = at
        if self._happens(climate.double):
            self._trace.note("fault.double", f"{receiver} {subject}")
            return (at - now, at - now + 0.05 * rng.random())
        return (at - now,)

    def stores(self, connection: str, subject: str) -> Fate:
        """Draw the fate of an append."""
        if self._happens(self.climate.append_lost):
            self._trace.note("fault.append_lost", f"{connection} {subject}")
            return "lost"
        if self._happens(self.climate.append_unanswered):
            self._trace.note("fault.append_unanswered", f"{connection} {subject}")
            return "unanswered"
        return "kept"

    def read_s(self, process: str) -> float:
        """Draw how long a few KV blocks of another worker take; in bad weather longer than anybody waits."""
        if self._happens(self.climate.read_slow):
            self._trace.note("fault.read_slow", process)
            return 3.0
        return 0.0001 + 0.0004 * self._rng.random()

    def breaks_read(self, process: str) -> bool:
        """Draw whether a read of KV blocks ends here."""
        return self._strikes("read_lost", process)

    def store_s(self) -> float:
        """Draw how long a shared store takes for a few blocks."""
        if self._happens(self.climate.store_slow):
            self._trace.note("fault.store_slow")
            return 1.5
        return 0.0005 + 0.001 * self._rng.random()

    def store_fails(self) -> bool:
        """Draw whether a shared store answers with an error."""
        return self._strikes("store_lost")

    def flips(self, key: BlockKey) -> bool:
        """Draw whether a stored block comes back with a wrong bit."""
        return self._strikes("store_flip", f"{key.block_hash:x}")

    def _strikes(self, fault: str, details: str = "") -> bool:
        is_struck = self._happens(getattr(self.climate, fault))
        if is_struck:
            self._trace.note(f"fault.{fault}", details)
        return is_struck

    def _note_path(self, action: Action, connection: str, subject: str, payload: bytes) -> None:
        """Count what says that a path was taken."""
        if connection == INTRUDER:
            return
        family = subject.split(".", 2)[1] if "." in subject else ""
        if family == "work" and ".any." in subject:
            self._trace.counts["path.any"] += 1
        elif family == "ctl":
            self._trace.counts["path.cancelled"] += isinstance(read_command(payload), Cancel)
        elif family == "dead":
            self._trace.counts["path.buried"] += 1
        elif family == "route" and connection != self._leader and _routes.decode(payload).is_leading:
            self._trace.note("path.takeover" if self._leader else "path.lead", connection)
            self._leader = connection

    def _happens(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share
