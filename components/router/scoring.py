"""Pure. What a prompt costs at each worker, in seconds, with what the worker holds of it."""

from array import array

from bus.config import RouterConfig
from components.router.affinity import Affinity
from components.router.fleet import Fleet
from components.router.predict import Predictions
from components.router.queue import Entry
from components.router.request import Holding, Request
from kv_events.index import PrefixIndex

STALE_S = 0.05
"""A request that waited for so long is matched with the index again before it leaves."""


class Scorer:
    """Prices prompts: the fleet's cost of computing all of it, less what is cached, more away from home.

    What a worker holds is what its events told (`index`), and what it was just sent.
    """

    def __init__(self, config: RouterConfig, index: PrefixIndex, fleet: Fleet[Entry[Request]]) -> None:
        self._index = index
        self._fleet = fleet
        self._predictions = Predictions(config.predicted_ttl_s)
        self._affinity = Affinity()
        self._affinity_s = config.session_affinity_s
        self._host_s = config.host_token_s
        self._disk_s = config.disk_token_s
        self._remote_s = config.remote_token_s
        self._version = 0

    def costs(self, request: Request, now: float) -> list[float]:
        """Return the cost at each worker number; infinite where there is no worker."""
        self._match(request, now)
        costs = self._fleet.costs(request.num_tokens, now)
        token_s = self._fleet.token_s
        for number, device, host, disk, remote in request.holdings:
            per_token = token_s[number]
            saved = per_token * device
            if remote > device:
                saved += (
                    max(0.0, per_token - self._host_s) * (host - device)
                    + max(0.0, per_token - self._disk_s) * (disk - host)
                    + max(0.0, per_token - self._remote_s) * (remote - disk)
                )
            costs[number] -= saved
        home = self._affinity.find(request.session)
        if home is not None:
            costs[home] -= self._affinity_s
        return costs

    def uncached(self, request: Request, number: int) -> int:
        """Return the tokens that a worker has to compute, as of the last look."""
        for holding in request.holdings:
            if holding[0] == number:
                return self._uncached(request, holding)
        return request.num_tokens

    def all_uncached(self, request: Request) -> dict[int, int]:
        """Return the tokens that each worker has to compute which holds any, as of the last look."""
        return {holding[0]: self._uncached(request, holding) for holding in request.holdings}

    def fewest_uncached(self, request: Request, now: float) -> int:
        """Return the tokens that the worker computes which holds the most."""
        self._match(request, now)
        return min([self._uncached(request, holding) for holding in request.holdings], default=request.num_tokens)

    def expect(self, worker: str, chain: "array[int]", now: float) -> None:
        """Count on a worker to hold these blocks soon."""
        if chain:
            self._predictions.add(worker, chain, now)
            self._version += 1

    def note_session(self, session: str, number: int) -> None:
        self._affinity.note(session, number)

    def remove_worker(self, worker: str, number: int) -> None:
        self._predictions.remove_worker(worker)
        self._affinity.remove_worker(number)
        self._version += 1

    def _match(self, request: Request, now: float) -> None:
        """Find out which workers hold how much of the prompt, unless that is known well enough."""
        if request.version == self._version and now - request.matched_at < STALE_S:
            return
        request.version, request.matched_at = self._version, now
        numbers = self._fleet.numbers
        holdings: list[Holding] = []
        for size, chain in request.chains.items():
            expected = self._predictions.match(chain, now)
            for worker, overlap in self._index.match(chain).items():
                number = numbers.get(worker)
                if number is None:
                    continue
                soon = expected.pop(worker, 0) if expected else 0
                device, host, disk, remote = overlap if soon <= overlap[0] else [max(soon, count) for count in overlap]
                holdings.append((number, device * size, host * size, disk * size, remote * size))
            for worker, soon in expected.items():
                number = numbers.get(worker)
                if number is not None:
                    holdings.append((number, soon * size, soon * size, soon * size, soon * size))
        request.holdings = holdings

    def _uncached(self, request: Request, holding: Holding) -> int:
        """Slower tiers help only where loading is quicker than computing."""
        number, device, host, disk, remote = holding
        per_token = self._fleet.token_s[number]
        held = device
        for count, load_s in ((host, self._host_s), (disk, self._disk_s), (remote, self._remote_s)):
            if count > held and load_s < per_token:
                held = count
        return max(1, request.num_tokens - held)
