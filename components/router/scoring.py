"""Pure. What a prompt costs at each worker, in seconds, with what the worker holds of it."""

from array import array

from bus.config import RouterConfig
from bus.messages.route import Placed
from components.router.affinity import Affinity
from components.router.fleet import Fleet
from components.router.predict import Predictions, merge_longest
from components.router.queue import Entry
from components.router.request import Holding, Request
from components.router.tiers import NO_LOADS, best_load, find_loads
from kv_events.index import Overlap, PrefixIndex

Sent = Entry[Request] | Placed
"""What is on its way to a worker: a request of this router, or one of which another router told."""

STALE_S = 0.05
"""A request that waited for so long is matched with the index again before it leaves."""
MAX_CHANGED = 1024
"""Beginnings of prompts that were sent lately; when there are more, all who wait are matched again."""
_NOTHING = Overlap(0, 0, 0, 0)
_NO_HOLDING: Holding = 0, NO_LOADS


class Scorer:
    """Prices prompts: the fleet's cost of computing all of it, less what is cached, more away from home.

    What a worker holds is what its events told (`index`), and what it was just sent.
    """

    def __init__(self, config: RouterConfig, index: PrefixIndex, fleet: Fleet[Sent]) -> None:
        self._index = index
        self._fleet = fleet
        self._predictions = Predictions(config.predicted_ttl_s)
        self._affinity = Affinity()
        self._affinity_s = config.session_affinity_s
        self._version = 0
        self._changed: dict[int, int] = {}
        """Versions since which chains that begin with a block are expected elsewhere."""
        self._changed_all = 0

    def costs(self, request: Request, now: float) -> list[float]:
        """Return the cost at each worker number; infinite where there is no worker."""
        self._match(request, now)
        if request.num_prefilled_blocks is not None:
            return self.join_costs(request, now)
        costs = self._fleet.costs(request.num_tokens, now)
        token_s = self._fleet.token_s
        for number, (device, loads) in request.holdings.items():
            per_token = token_s[number]
            saved = per_token * device
            if loads:
                saved += best_load(loads, per_token)[0]
            costs[number] -= saved
        home = self._affinity.find(request.session)
        if home is not None:
            costs[home] -= self._affinity_s
        return costs

    def cached(self, request: Request, number: int) -> int:
        """Return the tokens that a worker holds in device memory, as of the last look."""
        return request.holdings.get(number, _NO_HOLDING)[0]

    def join_costs(self, request: Request, now: float) -> list[float]:
        """Return what it costs to go on with a prompt that another worker computed: what is not there comes over."""
        fleet = self._fleet
        costs = fleet.costs(1, now)
        for number in fleet.present:
            state = fleet.state(number)
            costs[number] += state.fetch_cost_s(self.missing_tokens(request, number))
            costs[number] += fleet.token_s[number] * (request.num_tokens - self._offered(request, number))
        return costs

    def missing_tokens(self, request: Request, number: int) -> int:
        """Return the tokens that another worker could give it and that it does not hold, as of the last look."""
        return max(0, self._offered(request, number) - self.cached(request, number))

    def _offered(self, request: Request, number: int) -> int:
        """Return the tokens whose KV a worker can get from the one that prefills, or did so: those in full blocks."""
        size = self._fleet.state(number).block_size
        num_blocks = request.num_prefilled_blocks
        return min(request.num_tokens, (request.num_tokens // size if num_blocks is None else num_blocks) * size)

    def uncached(self, request: Request, number: int) -> int:
        """Return the tokens that a worker has to compute, as of the last look."""
        if request.num_prefilled_blocks is not None:
            return max(1, request.num_tokens - request.num_prefilled_blocks * self._fleet.state(number).block_size)
        return self.unheld(request, number)

    def unheld(self, request: Request, number: int) -> int:
        """Return the tokens that a worker would have to compute if no other did, as of the last look."""
        return max(1, request.num_tokens - self._held(request, number))

    def fewest_uncached(self, request: Request, now: float) -> int:
        """Return the tokens that the worker computes which holds the most."""
        self._match(request, now)
        most = 0
        for number, (device, loads) in request.holdings.items():
            most = max(most, self._held(request, number) if loads else device)
        return max(1, request.num_tokens - most)

    def expect(self, worker: str, chain: "array[int]", now: float) -> None:
        """Count on a worker to hold these blocks soon."""
        if chain:
            self._predictions.add(worker, chain, now)
            self._version += 1
            if len(self._changed) >= MAX_CHANGED:
                self._change_all()
            self._changed[chain[0]] = self._version

    def note_session(self, session: str, number: int) -> None:
        self._affinity.note(session, number)

    def remove_worker(self, worker: str, number: int) -> None:
        self._predictions.remove_worker(worker)
        self._affinity.remove_worker(number)
        self._version += 1
        self._change_all()

    def _change_all(self) -> None:
        self._changed.clear()
        self._changed_all = self._version

    def _changed_at(self, request: Request) -> int:
        """Return since which version the prompt, or one with which it shares a beginning, is expected elsewhere."""
        changed = self._changed_all
        for chain in request.chains.values():
            if chain:
                changed = max(changed, self._changed.get(chain[0], 0))
        return changed

    def _match(self, request: Request, now: float) -> None:
        """Find out which workers hold how much of the prompt, unless that is known well enough."""
        if now - request.matched_at < STALE_S and request.version >= self._changed_at(request):
            return
        request.version, request.matched_at = self._version, now
        request.holdings = {}
        for size, chain in request.chains.items():
            expected = self._predictions.match(chain, now)
            if self._fleet.owners or self._index.has_tiers:
                self._match_tiers(request, size, chain, expected)
            else:
                self._match_device(request, size, chain, expected)

    def _match_device(self, request: Request, size: int, chain: "array[int]", expected: dict[str, int]) -> None:
        lengths = merge_longest(self._index.match_device(chain), expected)
        numbers = self._fleet.numbers
        for worker, length in lengths.items():
            number = numbers.get(worker)
            if number is not None:
                request.holdings[number] = length * size, NO_LOADS

    def _match_tiers(self, request: Request, size: int, chain: "array[int]", expected: dict[str, int]) -> None:
        fleet = self._fleet
        overlaps = self._index.match(chain)
        shared = self._index.match_shared(chain) if fleet.owners else {}
        # What shared tiers have, any worker may have.
        workers = fleet.numbers.keys() if shared else overlaps.keys() | expected.keys()
        for worker in workers:
            number = fleet.numbers.get(worker)
            if number is None:
                continue
            overlap, soon = overlaps.get(worker, _NOTHING), expected.get(worker, 0)
            if soon > overlap.device:
                overlap = Overlap(*[max(soon, count) for count in overlap])
            loads = NO_LOADS
            if shared or overlap.remote > overlap.device:
                loads = find_loads(overlap, shared, fleet.state(number).tiers, size)
            if overlap.device or loads:
                request.holdings[number] = overlap.device * size, loads

    def _held(self, request: Request, number: int) -> int:
        """Tokens that are loaded because that is quicker are not computed."""
        device, loads = request.holdings.get(number, _NO_HOLDING)
        return device + best_load(loads, self._fleet.token_s[number])[1] if loads else device
