"""Pure. Requests that wait for room, in the order in which they may leave.

Classes first: interactive, then standard, then batch; a lower class with a share gets that part of the tokens while
higher ones wait. Within a class tenants share by weight: the one that was served the fewest uncached tokens, divided by
its weight, comes next (fair queueing in virtual time, which is deficit round robin without a quantum). Within a tenant
the earliest deadline goes first, then the earliest arrival, some requests counting as earlier or later (`lead_s`).

Several routers that tell each other what they place (`charge`) share as one does.
"""

from bisect import insort
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from bus.messages.inference import LATENCY_CLASSES, LatencyClass

NO_DEADLINE = float("inf")
MAX_TENANTS = 4096
"""With a memory of what they were served; the one served least recently is forgotten first."""
MAX_LEAD_TOKENS = 1e6
"""How far one tenant may be ahead of the others: what it got more than that, while they were away, is forgiven."""
SHARE_CREDIT_TOKENS = 65_536.0
"""Most that a share is saved up to, in tokens."""

T = TypeVar("T")


class Entry(msgspec.Struct, Generic[T], eq=False):
    """One request that waits. Times are those of the event loop, in seconds."""

    item: T
    tenant: str
    latency_class: LatencyClass
    tokens: int
    """What it costs: prompt tokens that no worker holds, as far as known; at least 1."""
    deadline: float
    arrived_at: float
    lead_s: float = 0.0
    """It has its place among the others as if it had arrived so much earlier."""
    number: int = 0


class _Tenant(Generic[T]):
    __slots__ = ("served", "tokens", "waiting")

    def __init__(self, served: float) -> None:
        self.served = served
        self.tokens = 0
        self.waiting: list[tuple[float, float, int, Entry[T]]] = []


class _Lane(Generic[T]):
    """The tenants of one class. `served` of a tenant is its virtual time: tokens over weight."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self.tenants: dict[str, _Tenant[T]] = {}
        self.busy: dict[str, _Tenant[T]] = {}
        self.clock = 0.0
        """Virtual time of the last one served: a tenant that comes back starts here, without saved-up credit."""
        self.num_waiting = 0
        self.tokens = 0

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def put(self, entry: Entry[T]) -> None:
        tenant = self.tenants.get(entry.tenant)
        if tenant is None:
            tenant = self.tenants[entry.tenant] = self._remember(entry.tenant)
        if not tenant.waiting:
            tenant.served = max(tenant.served, self.clock)
            self.busy[entry.tenant] = tenant
        insort(tenant.waiting, (entry.deadline, entry.arrived_at - entry.lead_s, entry.number, entry))
        tenant.tokens += entry.tokens
        self.tokens += entry.tokens
        self.num_waiting += 1

    def remove(self, entry: Entry[T]) -> None:
        tenant = self.busy[entry.tenant]
        position = next(i for i, (*_, number, _) in enumerate(tenant.waiting) if number == entry.number)
        del tenant.waiting[position]
        tenant.tokens -= entry.tokens
        self.tokens -= entry.tokens
        self.num_waiting -= 1
        if not tenant.waiting:
            del self.busy[entry.tenant]

    def charge(self, name: str, tokens: int) -> None:
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self._remember(name)
        else:
            del self.tenants[name]
        self.tenants[name] = tenant
        if not tenant.waiting:
            tenant.served = max(tenant.served, self.clock)
        self.clock = max(self.clock, min([other.served for other in self.busy.values()], default=tenant.served))
        tenant.served = min(tenant.served, self.clock + MAX_LEAD_TOKENS) + tokens / self.weight(name)

    def ordered(self) -> Iterator[Entry[T]]:
        """Yield entries in the order in which they would leave if each left at its expected cost."""
        if len(self.busy) == 1:
            for tenant in self.busy.values():
                for *_, entry in tenant.waiting:
                    yield entry
            return
        tenants = list(self.busy.values())
        heads = [(tenant.served, place, 0) for place, tenant in enumerate(tenants)]
        heapify(heads)
        while heads:
            served, place, position = heads[0]
            waiting = tenants[place].waiting
            entry = waiting[position][3]
            yield entry
            if position + 1 < len(waiting):
                heapreplace(heads, (served + entry.tokens / self.weight(entry.tenant), place, position + 1))
            else:
                heappop(heads)

    def _remember(self, name: str) -> _Tenant[T]:
        if len(self.tenants) >= MAX_TENANTS:
            oldest = next((key for key, tenant in self.tenants.items() if not tenant.waiting), None)
            if oldest is not None:
                del self.tenants[oldest]
        return _Tenant(self.clock)


class FairQueue(Generic[T]):
    """The requests of one model that wait in this router.

    `max_waiting` bounds each class: the owner grants deliveries only as there is room, so nothing is dropped here.
    """

    def __init__(self, weights: Mapping[str, float], shares: Mapping[LatencyClass, float], *, max_waiting: int) -> None:
        self._lanes: dict[LatencyClass, _Lane[T]] = {name: _Lane(weights) for name in LATENCY_CLASSES}
        self._shares = shares
        self._credit: dict[LatencyClass, float] = dict.fromkeys(shares, 0.0)
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._next_number = 0

    def __len__(self) -> int:
        return self._num_waiting

    def room(self, latency_class: LatencyClass) -> int:
        """Return how many more requests of the class may come."""
        return max(0, self._max_waiting - self._lanes[latency_class].num_waiting)

    def num_waiting(self, latency_class: LatencyClass) -> int:
        return self._lanes[latency_class].num_waiting

    def put(self, entry: Entry[T]) -> None:
        """Let a request wait; it keeps its place when it comes back after `remove`."""
        if not entry.number:
            self._next_number += 1
            entry.number = self._next_number
        self._lanes[entry.latency_class].put(entry)
        self._num_waiting += 1

    def remove(self, entry: Entry[T]) -> None:
        """Take a request out, wherever it stands."""
        self._lanes[entry.latency_class].remove(entry)
        self._num_waiting -= 1

    def charge(self, latency_class: LatencyClass, tenant: str, tokens: int) -> None:
        """Account `tokens` that were placed for a tenant, here or by another router."""
        tokens = max(1, tokens)
        self._lanes[latency_class].charge(tenant, tokens)
        if self._credit.get(latency_class, 0.0) > 0.0:
            self._credit[latency_class] -= tokens
        for name, share in self._shares.items():
            if name != latency_class and self._lanes[name].num_waiting:
                self._credit[name] = min(SHARE_CREDIT_TOKENS, self._credit[name] + share * tokens)

    def peek(self, limit: int) -> list[Entry[T]]:
        """Return up to `limit` requests in the order in which they should leave."""
        found: list[Entry[T]] = []
        lanes = [(name, lane) for name, lane in self._lanes.items() if lane.num_waiting]
        if len(lanes) == 1:
            return list(islice(lanes[0][1].ordered(), limit))
        # A class whose share is due goes first, as far as its credit reaches.
        for name, lane in lanes[1:]:
            credit = self._credit.get(name, 0.0)
            for entry in lane.ordered():
                if credit < entry.tokens and credit < SHARE_CREDIT_TOKENS:
                    break
                if len(found) == limit:
                    return found
                credit -= entry.tokens
                found.append(entry)
        seen = {entry.number for entry in found}
        for _, lane in lanes:
            for entry in lane.ordered():
                if len(found) == limit:
                    return found
                if entry.number not in seen:
                    found.append(entry)
        return found

    def all(self) -> list[Entry[T]]:
        """Return everything that waits, in no particular order."""
        return [entry for lane in self._lanes.values() for tenant in lane.busy.values() for *_, entry in tenant.waiting]

    def tokens_above(self, latency_class: LatencyClass) -> int:
        """Return the tokens of all that waits in higher classes."""
        higher = LATENCY_CLASSES[: LATENCY_CLASSES.index(latency_class)]
        return sum([self._lanes[name].tokens for name in higher])

    def tokens_ahead(self, latency_class: LatencyClass, tenant: str) -> float:
        """Estimate the tokens that leave before a request of this tenant that comes now.

        All of the higher classes, its own, and those of its class-mates that are served while its own are.
        """
        ahead = 0.0
        for name, lane in self._lanes.items():
            if name != latency_class:
                ahead += lane.tokens
                continue
            mine = lane.busy.get(tenant)
            if mine is None:
                return ahead
            rounds = mine.tokens / lane.weight(tenant)
            for other, state in lane.busy.items():
                if other != tenant:
                    ahead += min(state.tokens, rounds * lane.weight(other))
            return ahead + mine.tokens
        return ahead
