"""Pure. One model's router: what is known of its workers, who waits, and who goes where."""

import math
import random
from array import array
from collections.abc import Sequence

import msgspec

from bus.config import RouterConfig
from bus.drain import DrainRate
from bus.messages.base import pack_u64, unpack_u64
from bus.messages.fleet import WorkerCard, WorkerLoad
from bus.messages.inference import LATENCY_CLASSES, LatencyClass, Role
from bus.messages.route import Placed
from components.router.disaggregate import Disaggregation
from components.router.fleet import Fleet, Flight
from components.router.policy import BlindChoice, Rank, pick_cheapest
from components.router.queue import NO_DEADLINE, Entry, FairQueue
from components.router.request import Request
from components.router.scoring import Scorer, Sent
from components.router.sides import Sides
from kv_events.index import PrefixIndex

WINDOW = 8
"""Requests at the head of the queue that are looked at together: one whose best worker is busy lets others pass."""
MIN_RETRY_AFTER_S = 1.0
PRIORITY_S = 0.1
"""By which one level of priority counts as an earlier arrival: nobody waits for longer than that for later ones."""
PREFILLED_LEAD_S = 30.0
"""So much earlier than it came counts what is prefilled: it holds blocks and a slot elsewhere, and is computed again
when nobody has fetched it within 10 s."""
ONLINE_S = 60.0
"""Batch requests leave room for others for so long after the last one of these."""
MAX_ORPHANS = 4096
"""Known at a time, the latest: owners of others learn of their loss when nobody took them in time."""


class Choice(msgspec.Struct, frozen=True):
    """A worker for a request, what it costs there, and what of the prompt it holds."""

    number: int
    worker: str
    cost_s: float
    uncached_tokens: int
    role: Role = "both"
    """Whose lane of that worker the request goes to."""
    reason: str = ""
    """Why the prompt is computed by a worker of that role, where there is a choice."""


class Candidate(msgspec.Struct, frozen=True):
    """What a prompt would cost at one worker, in seconds; a router that ignores prefixes leaves the costs at 0."""

    worker: str
    cost_s: float
    wait_s: float
    """The part of it that a prompt of no length would wait, or cost others."""
    cached_tokens: int
    uncached_tokens: int
    num_requests: int
    """Requests that it has."""


class Placement(msgspec.Struct, frozen=True):
    """A decision to carry out."""

    request: Request
    entry: Entry[Request]
    choice: Choice
    waited_s: float


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is not taken, and when it may be worth another try."""

    code: str
    message: str
    retry_after_s: float


class Pool:
    """All decisions for one model. Time is an argument everywhere, in seconds of the event loop's clock."""

    def __init__(self, config: RouterConfig, index: PrefixIndex, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._blind = None if config.mode == "kv" else BlindChoice(config.mode, rng)
        self._drains = (_Drain(), _Drain())
        """The tokens and the requests that leave the queue while anything waits."""
        self._reserved: list[int] = []
        self._online_at = -math.inf
        self.fleet: Fleet[Sent] = Fleet(config.compute_weight, config.decode_weight)
        self._scorer = Scorer(config, index, self.fleet)
        self._sides = Sides(Disaggregation(config.disaggregate))
        self._shares: dict[LatencyClass, float] = {"standard": config.standard_share, "batch": config.batch_share}
        self.queue: FairQueue[Request] = FairQueue(config.tenant_weights, self._shares, max_waiting=config.queue_size)
        self.news: list[Placed] = []
        """Decisions that other routers have not heard of; whoever tells them clears it."""
        self.orphans: list[Placed] = []
        """What other routers sent to workers that are gone since: theirs to send again, unless they are gone, too."""

    # What comes in

    def join(self, card: WorkerCard, now: float) -> None:
        """Take note of a worker that generates, or of its new roles."""
        if not {"both", "prefill", "decode"}.isdisjoint(card.roles):
            self._sides.set_roles(self.fleet.join(card, now), frozenset(card.roles))
            self._reserve_workers()

    def leave(self, worker: str) -> int:
        """Forget a worker; what it may never have accepted waits again. Return how many requests that are."""
        number = self.fleet.numbers.get(worker)
        if number is None:
            return 0
        lost = self.fleet.leave(worker)
        self._sides.forget(number)
        self._reserve_workers()
        self._scorer.remove_worker(worker, number)
        entries = [item for item in lost if not isinstance(item, Placed)]
        for entry in entries:
            self.put_back(entry)
        orphans = [item for item in lost if isinstance(item, Placed) and item.frontend]
        self.orphans = [*self.orphans, *orphans][-MAX_ORPHANS:]
        return len(entries)

    def report(self, load: WorkerLoad, now: float) -> None:
        self.fleet.report(load, now)

    def hear(self, placed: Placed, now: float) -> None:
        """Account a decision of another router; raise `Malformed` at a broken column."""
        hashes = unpack_u64(placed.block_hashes)
        if placed.latency_class != "batch":
            self._online_at = now
        self.queue.charge(placed.latency_class, placed.tenant, placed.uncached_tokens)
        number = self.fleet.numbers.get(placed.worker)
        if number is None:
            return
        blocks = -(-placed.uncached_tokens // max(1, placed.block_size))
        self.fleet.place(number, placed.request_id, Flight(now, placed.uncached_tokens, blocks, placed))
        self._scorer.expect(placed.worker, hashes, now)

    def block_sizes(self) -> set[int]:
        """Return the block sizes that prompts must be hashed for."""
        if self._blind is not None:
            return set()
        return set(self.fleet.block_sizes)

    def admit(self, request: Request, deadline: float | None, now: float) -> Refusal | None:
        """Let a request wait for its turn, or say why that would be in vain."""
        if request.latency_class != "batch":
            self._online_at = now
        tokens = request.num_tokens
        if self._blind is None:
            tokens = self._scorer.fewest_uncached(request, now)
        wait_s = self.expected_wait_s(request.latency_class, request.tenant)
        limit_s = self._config.max_wait_s if deadline is None else min(self._config.max_wait_s, deadline - now)
        if wait_s > limit_s or limit_s <= 0.0:
            return _overloaded(wait_s, limit_s)
        self.queue.put(
            Entry(
                request,
                request.tenant,
                request.latency_class,
                tokens,
                NO_DEADLINE if deadline is None else deadline,
                now,
                PRIORITY_S * request.priority + (0.0 if request.num_prefilled_blocks is None else PREFILLED_LEAD_S),
            )
        )
        return None

    def put_back(self, entry: Entry[Request]) -> None:
        """Let a request wait again that was placed in vain: at its old place, under a new id for the lane."""
        request = entry.item
        if request.origin is not None:
            request.origin.message_id += "+"
        self.queue.put(entry)

    def expire(self, now: float) -> list[tuple[Request, Refusal]]:
        """Take out what waited for too long or has missed its deadline."""
        expired = []
        for entry in self.queue.all():
            waited_s = now - entry.arrived_at
            if waited_s > self._config.max_wait_s or now >= entry.deadline:
                self.queue.remove(entry)
                wait_s = max(waited_s, self.expected_wait_s(entry.latency_class, entry.tenant))
                limit_s = min(self._config.max_wait_s, entry.deadline - entry.arrived_at)
                expired.append((entry.item, _overloaded(wait_s, limit_s)))
        return expired

    def expected_wait_s(self, latency_class: LatencyClass, tenant: str) -> float:
        """Estimate how long a request of this tenant that comes now will wait; 0 while nothing is known."""
        if not len(self.queue):
            return 0.0
        queue, share = self.queue, self._shares.get(latency_class, 1.0)
        tokens, requests = self._drains
        if not (tokens.rate and requests.rate):
            return 0.0
        num_above = sum(queue.num_waiting(name) for name in _higher(latency_class))
        # Where prompts are what takes long, tokens tell; where workers are full, requests do. Who goes by tokens alone
        # sees ages in one long prompt after some short ones.
        return min(
            tokens.wait_s(
                latency_class, queue.tokens_above(latency_class), queue.tokens_ahead(latency_class, tenant), share
            ),
            requests.wait_s(latency_class, num_above, num_above + queue.num_waiting(latency_class), share),
        )

    # What goes out

    def plan(self, now: float, limit: float = math.inf) -> list[Placement]:
        """Decide what leaves the queue now, about `limit` requests at most, and account it."""
        placed: list[Placement] = []
        had_queue = len(self.queue) > 0
        while self.fleet.present and len(self.queue) and len(placed) < limit:
            entries = self.queue.peek(WINDOW)
            placements = self._plan_window(entries, now)
            placed += placements
            if not placements or len(entries) < WINDOW:
                break
        if had_queue:
            for placement in placed:
                for drain, amount in zip(self._drains, (placement.choice.uncached_tokens, 1), strict=True):
                    drain.amounts[placement.request.latency_class] += amount
        return placed

    def note_time(self, now: float) -> None:
        """Measure how fast the queue drains; to be called every so often."""
        for drain in self._drains:
            drain.note(now, had_queue=len(self.queue) > 0)

    def choose(self, request: Request, now: float) -> Choice | None:
        """Return the best worker for a prompt at present, busy or not; None when there is no worker."""
        if self._blind is not None:
            present = self._sides.present(request, self.fleet.present)
            number = self._blind.pick(present, self.fleet.num_requests())
            return None if number is None else self._choice(request, number, 0.0)
        costs, reason = self._sides.narrow(request, self._scorer.costs(request, now), self._scorer, now)
        number = self._cheapest(request, costs, now)
        return None if number is None else self._choice(request, number, costs[number], reason)

    def candidates(self, request: Request, now: float) -> list[Candidate]:
        """Return what the prompt would cost at every worker, the cheapest first."""
        fleet = self.fleet
        is_blind = self._blind is not None
        costs = [0.0] * len(fleet.free_at) if is_blind else self._scorer.costs(request, now)
        waits = costs if is_blind else fleet.costs(0, now)
        counts = fleet.num_requests()
        candidates = []
        for number in fleet.present:
            if costs[number] == math.inf:
                continue  # it fell silent
            choice = self._choice(request, number, costs[number])
            uncached = choice.uncached_tokens
            cached = request.num_tokens - uncached
            candidates.append(Candidate(choice.worker, choice.cost_s, waits[number], cached, uncached, counts[number]))
        return sorted(candidates, key=lambda candidate: (candidate.cost_s, candidate.num_requests, candidate.worker))

    def reserve(self, request: Request, choice: Choice, entry: Entry[Request] | None, now: float) -> None:
        """Account that a request goes to a worker; `entry` is what comes back should the worker die at once."""
        number = choice.number
        size = self.fleet.state(number).block_size
        blocks = -(-choice.uncached_tokens // size)
        self.fleet.place(number, request.key, Flight(now, choice.uncached_tokens, blocks, entry))
        chain = request.chains.get(size, array("Q"))
        self._scorer.expect(choice.worker, chain, now)
        if request.num_prefilled_blocks is None:
            self._scorer.note_session(request.session, number)
            self._sides.note(choice.role)
        self.queue.charge(request.latency_class, request.tenant, choice.uncached_tokens)
        self.news.append(
            Placed(
                request.key,
                choice.worker,
                request.tenant,
                request.latency_class,
                request.num_tokens,
                choice.uncached_tokens,
                size,
                pack_u64(chain),
                request.origin.frontend if request.origin is not None else "",
                request.origin.ticket if request.origin is not None else 0,
            )
        )

    def withdraw(self, placement: Placement, now: float) -> None:
        """Take back a placement that could not be carried out: the request waits again."""
        self.fleet.withdraw(placement.choice.number, placement.request.key, now)
        self.queue.put(placement.entry)

    def _plan_window(self, entries: list[Entry[Request]], now: float) -> list[Placement]:
        placed: list[Placement] = []
        parked: dict[int, float] = {}
        is_ahead = self.queue.num_waiting("interactive") + self.queue.num_waiting("standard") > 0
        for entry in entries:
            is_ahead = is_ahead and entry.latency_class == "batch"
            headroom = 0.0
            is_batch = entry.latency_class == "batch" and entry.item.num_prefilled_blocks is None
            if is_batch and not is_ahead and now - self._online_at < ONLINE_S:
                headroom = self._config.batch_headroom
            if headroom and not self._has_idle(headroom, now):
                continue
            request = entry.item
            choice = self._pick(request, parked, headroom, now)
            if choice is not None:
                self.queue.remove(entry)
                self.reserve(request, choice, entry, now)
                placed.append(Placement(request, entry, choice, now - entry.arrived_at))
            elif not parked:
                break  # no worker has room
        return placed

    def _pick(self, request: Request, parked: dict[int, float], headroom: float, now: float) -> Choice | None:
        """Return the best worker if it has room; None: wait.

        Waiting for a busy worker that is cheaper nevertheless counts in `parked`, in seconds, for those behind. That
        nobody has room shows in nothing being parked.
        """
        fleet = self.fleet
        if self._blind is not None:
            present = [n for n in self._sides.present(request, fleet.present) if fleet.has_place(n)]
            number = self._blind.pick(present, fleet.num_requests())
            return None if number is None else self._choice(request, number, 0.0)
        costs = self._scorer.costs(request, now)
        for number, seconds in parked.items():
            costs[number] += seconds
        for number in self._reserved if headroom else ():
            costs[number] = math.inf
        costs, reason = self._sides.narrow(request, costs, self._scorer, now)
        number = self._cheapest(request, costs, now)
        if number is None:
            return None
        choice = self._choice(request, number, costs[number], reason)
        state = fleet.state(number)
        if fleet.can_start(number, -(-choice.uncached_tokens // state.block_size), now, headroom):
            return choice
        if parked or any(
            fleet.can_start(other, 0, now, headroom) for other in fleet.present if costs[other] < math.inf
        ):
            _, token_s = state.model.prefill_line(state.decode, state.kv_tokens)
            parked[number] = parked.get(number, 0.0) + token_s * choice.uncached_tokens
        return None

    def _cheapest(self, request: Request, costs: list[float], now: float) -> int | None:
        def rank(numbers: list[int]) -> list[Rank]:
            return [(self._scorer.unheld(request, n), self.fleet.turnover(n, now)) for n in numbers]

        return pick_cheapest(costs, rank, self._rng, self._config.temperature_s)

    def _has_idle(self, headroom: float, now: float) -> bool:
        """Say whether enough workers have no prompt ahead for one more to get one of a batch."""
        idle = sum([self.fleet.free_at[number] <= now for number in self.fleet.present])
        return idle > int(headroom * len(self.fleet.present))

    def _reserve_workers(self) -> None:
        """Say anew which workers of each side batch requests stay away from: by name, so that all routers say the same.

        What is prefilled is no matter of that: its blocks are kept for whoever decodes it, elsewhere.
        """
        self._reserved = []
        for side in self._sides.both:
            names = sorted(name for name, number in self.fleet.numbers.items() if number in side)
            kept = names[: int(self._config.batch_headroom * len(names))]
            self._reserved += [self.fleet.numbers[name] for name in kept]

    def _choice(self, request: Request, number: int, cost_s: float, reason: str = "") -> Choice:
        name, uncached = self.fleet.state(number).name, self._scorer.uncached(request, number)
        return Choice(number, name, cost_s, uncached, self._sides.role(number), reason)


class _Drain:
    """How fast the queue gets shorter, by class and by one measure."""

    def __init__(self) -> None:
        self.amounts = dict.fromkeys(LATENCY_CLASSES, 0)
        """What left since the last `note`."""
        self._drains = {name: DrainRate() for name in LATENCY_CLASSES}
        self._rates = dict.fromkeys(LATENCY_CLASSES, 0.0)
        self.rate = 0.0
        """Of all classes, per second; 0: nothing is known."""

    def note(self, now: float, *, had_queue: bool) -> None:
        for name, drain in self._drains.items():
            drain.note(now, self.amounts[name], had_queue=had_queue)
            self.amounts[name] = 0
            self._rates[name] = drain.per_s or 0.0
        self.rate = sum(self._rates.values())

    def wait_s(self, latency_class: LatencyClass, above: float, ahead: float, share: float) -> float:
        """Estimate the wait behind what is `ahead`, the part `above` of it in higher classes, where a rate is known."""
        # Those of higher classes who come later take what such took lately. How fast the class itself moved says less:
        # a few who waited in bad times would keep all others out in good ones.
        taken = sum(self._rates[name] for name in _higher(latency_class))
        left = max(self.rate - taken, self.rate * share)
        return max(ahead / self.rate, (ahead - above) / left if left else 0.0)


def _higher(latency_class: LatencyClass) -> Sequence[LatencyClass]:
    return LATENCY_CLASSES[: LATENCY_CLASSES.index(latency_class)]


def _overloaded(wait_s: float, limit_s: float) -> Refusal:
    wait_s = min(wait_s, 3600.0)
    return Refusal(
        "overloaded",
        f"All workers are busy: the request would wait {wait_s:.1f} s, and may wait {max(0.0, limit_s):.1f} s.",
        max(MIN_RETRY_AFTER_S, math.ceil(wait_s - max(0.0, limit_s))),
    )
