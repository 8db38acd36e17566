"""Pure. Whether loading blocks beats computing them: per tier measured seconds against the measured speed of prefill.

Three rules keep a request with tiers from being slower than one without. A tier is waited for only after probes, for
which nobody waited, have shown what it takes. A load is begun only if it is expected to take well under the time that
computing would, with the ways between engine and mover counted. And it has a deadline, soon after the moment when it
should have ended: then what has come is used, the rest is computed, and the tier is not waited for again until new
probes have come in time.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from offload.breaker import Breaker, Trust
from offload.fit import Fit

MARGIN = 0.5
"""Part of the time to compute blocks that loading them may take, at most."""
DOUBT = 2.0
"""Mean errors by which a load is expected to take longer than was measured."""
PATIENCE = 1.5
GRACE_S = 0.002
"""A load is waited for `PATIENCE` times what it should take, and so much longer for the event loop's own delays,"""
FORBEARANCE = 0.05
"""or by this part longer than it should take of what computing takes, which nobody notices,"""
LIMIT = 0.75
"""but never for longer than this part of it."""
MIN_PREFILL_SAMPLES = 3
"""Steps with prefill that are measured before anything is loaded: what is not known cannot be beaten."""
FIRST_TURN_S = 0.001
"""What a fill costs beside copies and tiers, until that is measured."""
FRESH = 0.1
"""Weight of a step's duration against those before."""
MAX_GROWTH = 4
"""A load of a tier is at most so many times as large as the largest that was measured since it was last late."""


class Part(NamedTuple):
    """What one tier is to load: positions in the chain, ascending."""

    tier: str
    positions: list[int]


class LoadPlan(NamedTuple):
    """The first `num_blocks` of what was asked for, from several tiers at once."""

    num_blocks: int
    parts: list[Part]
    expected_s: float
    deadline_s: float
    """From the start of the load; after that, what is missing is computed."""


NOTHING = LoadPlan(0, [], 0.0, 0.0)


class Gate:
    """Measurements and decisions of one worker. Times are monotonic seconds.

    Every block passes through host memory: a load takes what the slowest of the tiers takes to bring its part there,
    then the copy to the device.
    """

    def __init__(self, tiers: Iterable[str], *, block_size: int) -> None:
        """`tiers` are those below host memory; `block_size` is in tokens."""
        self._block_size = block_size
        self._lines = {tier: Fit() for tier in tiers}
        """Blocks to seconds."""
        self._largest = dict.fromkeys(self._lines, 0)
        """Blocks of a load that came."""
        self._breakers = {tier: Breaker() for tier in self._lines}
        self._copy = Fit()
        """Blocks to seconds, from host memory to the device."""
        self._turn = Fit()
        """Blocks to seconds that a fill takes beside: the engine asks, is answered, books are kept."""
        self._prefill = Fit(2)
        """Tokens, and the tokens before each of them, to the seconds of a step."""
        self._step_s = 0.0

    @property
    def prefill_s(self) -> tuple[float, float]:
        """Measured seconds to compute a token of a prompt, and for each token before it; 0 while not known."""
        if self._prefill.count < MIN_PREFILL_SAMPLES:
            return 0.0, 0.0
        token_s, context_s = self._prefill.units_s
        return token_s, context_s

    def note_step(self, prefill_tokens: int, prefill_context: int, duration_s: float) -> None:
        """Take the measure of an engine step; `prefill_context` is the number of tokens before each of them, summed."""
        self._step_s += (FRESH if self._step_s else 1.0) * (duration_s - self._step_s)
        if prefill_tokens:
            self._prefill.add(duration_s, prefill_tokens, prefill_context)

    def note_copy(self, num_blocks: int, duration_s: float) -> None:
        """Take the measure of a copy from host memory to the device."""
        self._copy.add(duration_s, num_blocks)

    def note_store(self, num_blocks: int, duration_s: float) -> None:
        """Take the measure of a copy to host memory: steps beside it hold it up, loads take no longer than it did."""
        if not self._copy.count or duration_s < self._copy.predict(num_blocks):
            self._copy.add(duration_s, num_blocks)

    def note_turn(self, num_blocks: int, duration_s: float) -> None:
        """Take the measure of a fill of an idle engine, less copies and waits for tiers."""
        self._turn.add(duration_s, num_blocks)

    def note_load(self, tier: str, num_blocks: int, duration_s: float, now: float) -> None:
        """Take the measure of a load into host memory that came, whether anybody waited for it or not."""
        self._lines[tier].add(duration_s, num_blocks)
        self._largest[tier] = max(self._largest[tier], num_blocks)
        self._breakers[tier].note_success(now)

    def note_failure(self, tier: str, now: float) -> bool:
        """A tier failed or was late; return whether it was trusted until now. Its measurements begin anew."""
        self._lines[tier] = Fit()
        self._largest[tier] = 0
        return self._breakers[tier].note_failure(now)

    def is_open(self, tier: str) -> bool:
        """Say whether anybody may wait for this tier."""
        return self._breakers[tier].trust is Trust.PROVEN

    def is_probe_due(self, tier: str, now: float) -> bool:
        """Say whether this tier is to be measured by a load for which nobody waits."""
        return self._breakers[tier].is_probe_due(now)

    def would_pay(self, tier: str, num_blocks: int) -> bool:
        """Say whether so many blocks come from this tier sooner than they are computed, if it goes on as measured."""
        token_s, context_s = self.prefill_s
        tokens = num_blocks * self._block_size
        return self._lines[tier].predict(num_blocks) <= MARGIN * tokens * (token_s + tokens / 2 * context_s)

    def room(self, tier: str) -> int:
        """Return the blocks of the largest load of this tier that its measurements tell anything about."""
        return MAX_GROWTH * self._largest[tier]

    def rate(self, tier: str | None) -> tuple[float, float]:
        """Return seconds of any load of this tier's blocks, and seconds for each block; None is host memory."""
        base_s = self._copy.base_s + self._turn_s()
        unit_s = sum([part.units_s[0] for part in (self._copy, self._turn)])
        if tier is None:
            return base_s, unit_s
        line = self._lines[tier]
        return line.base_s + base_s, line.units_s[0] + unit_s

    def plan(self, holders: Sequence[Sequence[str] | None], *, start: int = 0, is_busy: bool = False) -> LoadPlan:
        """Decide how many of some consecutive blocks to load, and from where.

        `holders[i]` are the tiers that have block `start + i`, which the device does not have; None: host memory has
        it. Each block goes to the tier that would be done first; of all lengths, the one that saves most is taken, none
        if no load wins. An engine that is busy is a step ahead by the time it is answered.
        """
        rates = {tier: self._doubted(line) for tier, line in self._lines.items() if self.is_open(tier)}
        room = {tier: self.room(tier) for tier in rates}
        costs: dict[str, float] = {}
        chosen: list[str | None] = []
        arrival_s = best_saving_s = best_s = best_compute_s = 0.0
        best = 0
        copy_s, copy_block_s = self._doubted(self._copy)
        turn_s, turn_block_s = self._turn_s(), self._turn.units_s[0]
        fixed_s = copy_s + turn_s + (self._step_s if is_busy else 0.0)
        block_s = copy_block_s + turn_block_s
        token_s, context_s = self.prefill_s
        for num_blocks, tiers in enumerate(holders, 1):
            tier = None
            if tiers is not None:
                done = [(costs.get(tier, rates[tier][0]) + rates[tier][1], tier) for tier in tiers if room.get(tier)]
                if not done:
                    break
                done_s, tier = min(done)
                costs[tier] = done_s
                room[tier] -= 1
                arrival_s = max(arrival_s, done_s)
            chosen.append(tier)
            load_s = arrival_s + fixed_s + num_blocks * block_s
            tokens = num_blocks * self._block_size
            compute_s = tokens * (token_s + (start * self._block_size + tokens / 2) * context_s)
            if load_s <= MARGIN * compute_s and compute_s - load_s > best_saving_s:
                best, best_saving_s, best_s, best_compute_s = num_blocks, compute_s - load_s, load_s, compute_s
        if not best:
            return NOTHING
        parts: dict[str, list[int]] = {}
        for position, tier in enumerate(chosen[:best]):
            if tier is not None:
                parts.setdefault(tier, []).append(position)
        patience_s = max(PATIENCE * best_s + GRACE_S, best_s + FORBEARANCE * best_compute_s)
        deadline_s = min(patience_s, LIMIT * best_compute_s)
        return LoadPlan(best, [Part(*part) for part in parts.items()], best_s, deadline_s)

    def _turn_s(self) -> float:
        return self._turn.base_s if self._turn.count else FIRST_TURN_S

    @staticmethod
    def _doubted(fit: Fit) -> tuple[float, float]:
        """Return what any load and each block take, if they take longer than measured."""
        factor = 1 + DOUBT * fit.error
        return factor * fit.base_s, factor * fit.units_s[0]
