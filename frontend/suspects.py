"""Pure. Requests that may kill workers: who is to blame for a death, and who tries again only when nobody else does.

A worker dies with many requests in it, and nearly always by an accident. A request that has no token yet of this
attempt is under suspicion: what kills an engine does so when it is computed. One that was so in two deaths, and the
only one that was, has killed two workers, and goes to no third. Where several were, they are tried one at a time: the
guilty one dies alone.
"""

from collections import deque
from collections.abc import Iterable

from frontend.request import Request

MAX_DEATHS = 2
"""Workers that may die of one request."""


class Suspects:
    """Requests that wait for a trial of their own, in the order of their deaths, and the one whose turn it is."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()
        self._on_trial: Request | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._on_trial is not None)

    def blame(self, lost: Iterable[Request]) -> Request | None:
        """Take note of the requests that a worker died with; return the one that is guilty, if that is clear.

        Those that are to be tried alone are held (`Request.is_held`) until `next_trial` returns them.
        """
        repeated = []
        for request in lost:
            if request.has_token_of_attempt:
                continue
            request.num_deaths += 1
            if request.num_deaths >= MAX_DEATHS:
                repeated.append(request)
        if len(repeated) == 1:
            return repeated[0]
        for request in repeated:
            request.is_held = True
            self._waiting.append(request)
        return None

    def next_trial(self) -> Request | None:
        """Return the request whose turn has come, None while another one's trial is not over."""
        trial = self._on_trial
        if trial is not None and trial.is_live and not trial.is_held and not trial.has_token_of_attempt:
            return None
        self._on_trial = None
        while self._waiting:
            request = self._waiting.popleft()
            if request.is_live:
                request.is_held = False
                self._on_trial = request
                return request
        return None
