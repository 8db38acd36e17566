"""Pure. What is known of the workers of one model, and what each would cost.

The truth about load is in the workers' reports; decisions of this router and of others bridge the time until the next
one. The numbers that every choice reads are columns, one position for each worker: a choice among 64 is a list
comprehension, and arrays lie in few lines of the CPU's cache, which has forgotten them when a request comes.
"""

import math
from array import array
from collections import Counter
from itertools import takewhile
from typing import Generic, TypeVar

import msgspec

from bus.messages.fleet import TierRate, WorkerCard, WorkerLoad
from components.router.model import StepModel

SETTLED_S = 0.01
"""A report that comes so long after a decision counts the request already."""
KEPT_S = 0.5
"""A report that comes so long after a decision proves that the worker lived to accept the request, if it had room."""
SUSPECT_S = 0.7
"""A worker that is silent for so long, nearly three reports, is given nothing: its frontends leave it soon after."""
DEAD_S = 3.0
SPARE_REQUESTS = 1
"""Given to a worker beyond what it can run, to have it at hand when one ends."""
SHORTEST_STEP_S = 0.01
"""Work ahead that a worker is given at least, in seconds: what a decision and its way take."""
REQUEST_S = 2e-6
"""Cost of each request that a worker has: decides between workers that are equal otherwise."""
LONGEST_GAP_S = 60.0
TURNOVER_S = 300.0
"""Half of what a worker computed before this counts no more for the turnover of its cache."""
TIE_S = 1e-9
DEFAULT_FETCH_TOKEN_S = 2e-6
"""Seconds for the KV of a token before any was measured: 64 KiB a block of 16 at 2 GB/s."""

T = TypeVar("T")


class Flight(msgspec.Struct, Generic[T]):
    """A request on its way to a worker; `item` is what to send elsewhere if the worker dies before it accepts."""

    placed_at: float
    tokens: int
    blocks: int
    item: T | None
    is_settled: bool = False


class WorkerState(Generic[T]):
    """One worker. Counts come from its last report."""

    __slots__ = (
        "block_size",
        "decode",
        "fetch_s",
        "fetch_token_s",
        "flights",
        "free_blocks",
        "full_step_s",
        "gap_s",
        "heard_at",
        "kv_tokens",
        "max_running",
        "model",
        "name",
        "num_unsettled",
        "placed_at",
        "reported",
        "slots",
        "tiers",
        "turned_at",
        "turnover",
        "unsettled_blocks",
        "waiting_blocks",
    )

    def __init__(self, card: WorkerCard, model: StepModel, now: float) -> None:
        self.name = card.worker
        self.block_size = card.block_size
        self.slots = card.slots
        self.max_running = card.max_running or card.slots
        self.model = model
        self.heard_at = now
        self.placed_at = now
        self.gap_s = 0.0
        """Time between two requests that it took while it was full."""
        self.reported = 0
        """Requests that it had, running or not."""
        self.decode = 0
        self.fetch_s = 0.0
        self.fetch_token_s = DEFAULT_FETCH_TOKEN_S
        self.kv_tokens = 0
        self.free_blocks = card.num_blocks
        self.waiting_blocks = 0
        self.full_step_s = SHORTEST_STEP_S
        self.flights: dict[str, Flight[T]] = {}
        """The one placed last comes last."""
        self.num_unsettled = 0
        self.unsettled_blocks = 0
        self.turnover = 0.0
        self.turned_at = now
        self.tiers: list[TierRate] = []
        """From which it can load, and at what price."""

    def fetch_cost_s(self, num_tokens: int) -> float:
        """Return the seconds until the KV of so many tokens has come from another worker."""
        return self.fetch_s + num_tokens * self.fetch_token_s if num_tokens else 0.0

    @property
    def num_requests(self) -> int:
        """Requests that it has or will have in a moment."""
        return self.reported + self.num_unsettled


class Fleet(Generic[T]):
    """The workers by number; numbers of workers that left are given again.

    Costs are in seconds: waiting for what is ahead, and computing the prompt. The latter counts `compute_weight` times,
    for those who come later and find the worker busy, and `decode_weight` times for each request that decodes there.
    """

    def __init__(self, compute_weight: float, decode_weight: float) -> None:
        self._compute_weight = compute_weight
        self._decode_weight = decode_weight
        self._states: list[WorkerState[T] | None] = []
        self.numbers: dict[str, int] = {}
        self.present: list[int] = []
        self.block_sizes: Counter[int] = Counter()
        self.free_at = array("d")
        """When each worker has computed the prompts that it has."""
        self.extra_s = array("d")
        """Cost of any request, beside that; infinite where there is no worker."""
        self.token_s = array("d")
        """Cost of each prompt token to compute."""
        self.owners: set[str] = set()
        """Shared tiers from which any worker could ever load."""

    def state(self, number: int) -> WorkerState[T]:
        state = self._states[number]
        if state is None:
            raise LookupError(f"no worker has number {number}")
        return state

    def join(self, card: WorkerCard, now: float) -> int:
        """Take note of a worker; one that is known keeps what is known of it. Return its number."""
        number = self.numbers.get(card.worker)
        if number is not None:
            return number
        model = StepModel.like([self.state(other).model for other in self.present])
        state: WorkerState[T] = WorkerState(card, model, now)
        if None in self._states:
            number = self._states.index(None)
            self._states[number] = state
            self.free_at[number] = now
        else:
            number = len(self._states)
            self._states.append(state)
            self.free_at.append(now)
            self.extra_s.append(math.inf)
            self.token_s.append(0.0)
        self.numbers[card.worker] = number
        self.present.append(number)
        self.block_sizes[card.block_size] += 1
        self._price(number, state, now)
        return number

    def leave(self, worker: str) -> list[T]:
        """Forget a worker; return what was on its way there and may never have been accepted."""
        number = self.numbers.pop(worker, None)
        if number is None:
            return []
        state = self.state(number)
        flights = state.flights.values()
        self._states[number] = None
        self.block_sizes -= Counter([state.block_size])
        self.extra_s[number] = math.inf
        self.present.remove(number)
        return [flight.item for flight in flights if flight.item is not None]

    def report(self, load: WorkerLoad, now: float) -> None:
        """Take a worker's report; of workers that did not join, nothing."""
        number = self.numbers.get(load.worker)
        if number is None:
            return
        state = self.state(number)
        state.heard_at = now
        state.reported = load.running + load.waiting
        state.free_blocks = load.free_blocks
        state.waiting_blocks = -(-load.waiting_tokens // state.block_size)
        state.decode = load.running
        state.tiers = load.tiers
        self.owners.update([rate.owner for rate in load.tiers if rate.owner])
        if load.fetch_s or load.fetch_token_s:
            state.fetch_s, state.fetch_token_s = load.fetch_s, load.fetch_token_s
        if load.steps:
            for step in load.steps:
                state.model.observe(step.duration_s, step.prefill_tokens, step.decode_requests, step.kv_tokens)
            state.model.fit()
            state.kv_tokens = load.steps[-1].kv_tokens
        if not load.running:
            state.kv_tokens = 0
        unsettled_tokens = self._settle(state, now, has_room=load.taken < state.slots)
        # The step that runs now has done part of its tokens; those that wait may find a part of theirs in the cache.
        most = load.prefill_tokens + unsettled_tokens
        least = max(0, load.prefill_tokens - load.waiting_tokens - state.model.chunk_tokens) + unsettled_tokens
        latest = now + state.model.prefill_s(most, state.decode, state.kv_tokens)
        earliest = now + state.model.prefill_s(least, state.decode, state.kv_tokens)
        self.free_at[number] = min(max(self.free_at[number], earliest), latest)
        self._price(number, state, now)

    def place(self, number: int, key: str, flight: Flight[T]) -> None:
        """Account a request that is sent to a worker, here or (without `item`) by another router."""
        state, now = self.state(number), flight.placed_at
        if state.num_requests >= state.max_running:
            state.gap_s += 0.2 * (min(now - state.placed_at, LONGEST_GAP_S) - state.gap_s)
        state.placed_at = now
        if state.flights.pop(key, None) is None:
            state.num_unsettled += 1
            state.unsettled_blocks += flight.blocks
        state.flights[key] = flight
        fixed_s, token_s = state.model.prefill_line(state.decode, state.kv_tokens)
        if self.free_at[number] <= now:
            self.free_at[number] = now + fixed_s
        state.turnover = self.turnover(number, now) + flight.tokens
        state.turned_at = now
        # What is ahead and this share steps.
        self.free_at[number] += token_s * flight.tokens
        self._price(number, state, now)

    def withdraw(self, number: int, key: str, now: float) -> None:
        """Take a request back that did not get on its way."""
        state = self._states[number]
        flight = state.flights.pop(key, None) if state is not None else None
        if state is None or flight is None:
            return
        if not flight.is_settled:
            state.num_unsettled -= 1
            state.unsettled_blocks -= flight.blocks
        self.free_at[number] -= state.model.prefill_line(state.decode, state.kv_tokens)[1] * flight.tokens
        self._price(number, state, now)

    def turnover(self, number: int, now: float) -> float:
        """Return the prompt tokens that a worker computed lately: so much was pushed out of its cache, or will be."""
        state = self.state(number)
        return state.turnover * math.exp2((state.turned_at - now) / TURNOVER_S)

    def silent(self, now: float) -> list[str]:
        """Return the workers that are silent for so long that they count as dead; suspect those before that."""
        dead = []
        for number in self.present:
            state = self.state(number)
            if now - state.heard_at > DEAD_S:
                dead.append(state.name)
            elif now - state.heard_at > SUSPECT_S:
                self._price(number, state, now)
        return dead

    def excuse_silence(self, now: float) -> None:
        """Start all clocks of silence again: it was this process that did not listen."""
        for number in self.present:
            state = self.state(number)
            state.heard_at = now
            self._price(number, state, now)

    def costs(self, tokens: int, now: float) -> list[float]:
        """Return what a prompt of `tokens` costs at each worker that holds none of it."""
        return [
            (free_at - now if free_at > now else 0.0) + extra + token_s * tokens
            for free_at, extra, token_s in zip(self.free_at, self.extra_s, self.token_s, strict=True)
        ]

    def can_start(self, number: int, blocks: int, now: float, headroom: float = 0.0) -> bool:
        """Say whether a worker may get a request that needs so many more blocks: it can start it, or nearly so.

        A part `headroom` of its places and blocks stays free, and with any the worker must have no prompt ahead.
        """
        state = self.state(number)
        num_requests = state.num_requests
        if not num_requests:
            return True
        kept = 1.0 - headroom
        if headroom:
            if num_requests >= state.max_running * kept or self.free_at[number] > now:
                return False
        elif num_requests >= min(state.slots, state.max_running + SPARE_REQUESTS):
            return False
        free = (state.free_blocks - state.waiting_blocks - state.unsettled_blocks) * kept
        # Each request that runs needs a block more, sooner or later.
        return self.free_at[number] - now <= state.full_step_s + TIE_S and blocks + num_requests <= free

    def has_place(self, number: int) -> bool:
        """Say whether a worker accepts one more request at all."""
        state = self.state(number)
        return state.num_requests < state.slots and self.extra_s[number] < math.inf

    def num_requests(self) -> list[int]:
        """Return how many requests each number has, 0 where there is no worker."""
        return [0 if state is None else state.num_requests for state in self._states]

    def next_room_at(self, now: float) -> float:
        """Return when the next worker should have computed enough to take more, infinite if reports must tell."""
        times = [self.free_at[number] - self.state(number).full_step_s for number in self.present]
        return min([at for at in times if at > now], default=math.inf)

    def _settle(self, state: WorkerState[T], now: float, *, has_room: bool) -> int:
        """Sort the requests on their way into those that the report counted and the rest, whose tokens are returned."""
        tokens = blocks = count = 0
        for flight in reversed(state.flights.values()):
            if now - flight.placed_at < SETTLED_S:
                count += 1
                tokens += flight.tokens
                blocks += flight.blocks
            elif flight.is_settled:
                break  # all before it are, too
            else:
                flight.is_settled = True
        state.num_unsettled, state.unsettled_blocks = count, blocks
        if has_room:
            arrived = list(takewhile(lambda key: now - state.flights[key].placed_at >= KEPT_S, state.flights))
            for key in arrived:
                del state.flights[key]
        return tokens

    def _price(self, number: int, state: WorkerState[T], now: float) -> None:
        """Work out again what depends on a worker's load."""
        decode, kv_tokens = state.decode, state.kv_tokens
        fixed_s, token_s = state.model.prefill_line(decode, kv_tokens)
        num_requests = state.num_requests
        factor = self._compute_weight + self._decode_weight * num_requests
        # The step that runs has to end first, and who decodes has a share in those that follow.
        extra_s = fixed_s * factor + (fixed_s if decode else 0.0) + REQUEST_S * num_requests
        if num_requests >= state.max_running:
            extra_s += state.gap_s * (num_requests - state.max_running + 1)
        is_suspect = now - state.heard_at > SUSPECT_S
        self.extra_s[number] = math.inf if is_suspect else extra_s
        self.token_s[number] = token_s * factor
        state.full_step_s = max(SHORTEST_STEP_S, state.model.prefill_s(state.model.chunk_tokens, decode, kv_tokens))
