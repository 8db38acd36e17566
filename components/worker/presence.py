"""Pure. Which owners are gone: a worker does not go on for a frontend that nobody hears of."""

from collections.abc import Iterable

SILENCE_S = 10.0
"""How long a frontend may be missing from the registry: it survives a broker that lost the registry."""


class Presence:
    """Frontends in the registry, and since when an owner of live attempts is missing there.

    Times are monotonic seconds. While the broker is away nobody is judged: `suspend` starts all clocks again.
    """

    def __init__(self) -> None:
        self._present: set[str] = set()
        self._missing_since: dict[str, float] = {}

    def arrive(self, frontend: str) -> None:
        self._present.add(frontend)
        self._missing_since.pop(frontend, None)

    def leave(self, frontend: str) -> None:
        self._present.discard(frontend)

    def suspend(self) -> None:
        self._missing_since.clear()

    def find_gone(self, owners: Iterable[str], now: float) -> list[str]:
        """Return those of `owners` that have been missing for `SILENCE_S`; others are forgotten."""
        since = {owner: self._missing_since.get(owner, now) for owner in owners if owner not in self._present}
        self._missing_since = since
        return [owner for owner, missing_at in since.items() if now - missing_at >= SILENCE_S]
