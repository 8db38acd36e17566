"""Pure. Where each session was served last."""

MAX_SESSIONS = 65_536
"""The session that was served least recently is forgotten first."""


class Affinity:
    """Sessions and the numbers of their workers."""

    def __init__(self) -> None:
        self._homes: dict[str, int] = {}

    def note(self, session: str, worker: int) -> None:
        """Remember that `worker` serves the session; requests without one are nobody's."""
        if not session:
            return
        self._homes.pop(session, None)
        self._homes[session] = worker
        if len(self._homes) > MAX_SESSIONS:
            del self._homes[next(iter(self._homes))]

    def find(self, session: str) -> int | None:
        return self._homes.get(session) if session else None

    def remove_worker(self, worker: int) -> None:
        """Forget a worker whose number may be given to another."""
        self._homes = {session: home for session, home in self._homes.items() if home != worker}
