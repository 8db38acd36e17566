"""Pure. What happened in a run: a hash of every event on the bus, its last lines, and how often each thing occurred."""

from collections import Counter, deque
from collections.abc import Callable, MutableMapping
from typing import Any, NoReturn

import structlog
from xxhash import xxh3_64_hexdigest, xxh3_128

KEPT_LINES = 200_000


class Trace:
    """Two runs are the same when their digests are."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts: Counter[str] = Counter()
        """How often each fault struck and each path was taken."""
        self.num_events = 0
        self._clock = clock
        self._hash = xxh3_128()
        self._payload, self._payload_digest = b"", xxh3_64_hexdigest(b"")
        """The last one: most come several times, once for each who hears them."""
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def digest(self) -> str:
        """Return the hash of all events so far."""
        return self._hash.hexdigest()

    @property
    def lines(self) -> list[str]:
        """Return the last lines."""
        return list(self._lines)

    def note_event(self, action: str, connection: str, subject: str, payload: bytes) -> None:
        """Add an event on the bus."""
        if payload is not self._payload:
            self._payload, self._payload_digest = payload, xxh3_64_hexdigest(payload)
        line = f"{self._clock():.6f} {action} {connection} {subject} {len(payload)} {self._payload_digest}"
        self.num_events += 1
        self._hash.update(line.encode())
        self._lines.append(line)

    def note(self, kind: str, text: str = "") -> None:
        """Add what somebody did, or what a component says that it did."""
        self.counts[kind] += 1
        self._lines.append(f"{self._clock():.6f} {kind} {text}")

    def note_log(self, _logger: object, _method: str, entry: MutableMapping[str, Any]) -> NoReturn:
        """Add a line of a component's log: a processor of structlog, the last one."""
        event = str(entry.pop("event"))
        reason = entry.get("reason", "")
        details = " ".join(f"{key}={value}" for key, value in entry.items() if key != "exc_info")
        if error := entry.get("exc_info"):
            details += f" {error!r}"
        self.counts[event] += 1
        if event == "request.retried":
            self.counts[f"{event}:{reason}"] += 1
        self._lines.append(f"{self._clock():.6f} log {event} {details}")
        raise structlog.DropEvent
