"""Pure. Whether loading blocks beats computing them: per tier measured seconds against the measured speed of prefill.

Three rules keep a request with tiers from being slower than one without. A tier is waited for only after probes, for
which nobody waited, have shown what it takes. A load is begun only if it is expected to take well under the time that
computing would. And it has a deadline, soon after the moment when it should have ended: then what has come is used,
the rest is computed, and the tier is not waited for again until new probes have come in time.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from offload.breaker import Breaker, Trust
from offload.fit import Line

MARGIN = 0.7
"""Part of the time to compute blocks that loading them may take, at most."""
DOUBT = 2.0
"""Mean errors that are added to what a load is expected to take."""
PATIENCE = 1.5
GRACE_S = 0.002
"""A load is waited for `PATIENCE` times what it should take, and so much longer for the event loop's own delays."""
MIN_PREFILL_SAMPLES = 3
"""Steps with prefill that are measured before anything is loaded: what is not known cannot be beaten."""


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
        self._lines = {tier: Line() for tier in tiers}
        """Blocks to seconds."""
        self._breakers = {tier: Breaker() for tier in self._lines}
        self._copy = Line()
        """Blocks to seconds, from host memory to the device."""
        self._prefill = Line()
        """Tokens to seconds."""

    @property
    def prefill_token_s(self) -> float:
        """Measured seconds to compute a token of a prompt; 0 while that is not known."""
        return self._prefill.unit_s if self._prefill.count >= MIN_PREFILL_SAMPLES else 0.0

    def note_step(self, prefill_tokens: int, duration_s: float) -> None:
        """Take the measure of an engine step."""
        if prefill_tokens:
            self._prefill.add(prefill_tokens, duration_s)

    def note_copy(self, num_blocks: int, duration_s: float) -> None:
        """Take the measure of a copy between host memory and the device."""
        self._copy.add(num_blocks, duration_s)

    def note_load(self, tier: str, num_blocks: int, duration_s: float, now: float) -> None:
        """Take the measure of a load into host memory that came, whether anybody waited for it or not."""
        self._lines[tier].add(num_blocks, duration_s)
        self._breakers[tier].note_success(now)

    def note_failure(self, tier: str, now: float) -> bool:
        """A tier failed or was late; return whether it was trusted until now. Its measurements begin anew."""
        self._lines[tier] = Line()
        return self._breakers[tier].note_failure(now)

    def is_open(self, tier: str) -> bool:
        """Say whether anybody may wait for this tier."""
        return self._breakers[tier].trust is Trust.PROVEN

    def is_probe_due(self, tier: str, now: float) -> bool:
        """Say whether this tier is to be measured by a load for which nobody waits."""
        return self._breakers[tier].is_probe_due(now)

    def rate(self, tier: str | None) -> tuple[float, float]:
        """Return seconds of any load of this tier's blocks, and seconds for each block; None is host memory."""
        copy = self._copy
        if tier is None:
            return copy.base_s, copy.unit_s
        line = self._lines[tier]
        return line.base_s + copy.base_s, line.unit_s + copy.unit_s

    def plan(self, holders: Sequence[Sequence[str] | None]) -> LoadPlan:
        """Decide how many of some consecutive blocks to load, and from where.

        `holders[i]` are the tiers that have block i, which the device does not have; None: host memory has it. Each
        block goes to the tier that would be done first; of all lengths, the one that saves most is taken, none if no
        load wins.
        """
        costs: dict[str, float] = {}
        chosen: list[str | None] = []
        arrival_s = best_saving_s = best_s = 0.0
        best = 0
        for num_blocks, tiers in enumerate(holders, 1):
            tier = None
            if tiers is not None:
                tier = self._first_done(tiers, costs)
                if tier is None:
                    break
                costs[tier] = self._cost(tier, costs)
                arrival_s = max(arrival_s, costs[tier])
            chosen.append(tier)
            load_s = arrival_s + self._copy.predict(num_blocks) + DOUBT * self._copy.error_s
            compute_s = num_blocks * self._block_size * self.prefill_token_s
            if load_s <= MARGIN * compute_s and compute_s - load_s > best_saving_s:
                best, best_saving_s, best_s = num_blocks, compute_s - load_s, load_s
        if not best:
            return NOTHING
        parts: dict[str, list[int]] = {}
        for position, tier in enumerate(chosen[:best]):
            if tier is not None:
                parts.setdefault(tier, []).append(position)
        deadline_s = min(PATIENCE * best_s + GRACE_S, best * self._block_size * self.prefill_token_s)
        return LoadPlan(best, [Part(*part) for part in parts.items()], best_s, deadline_s)

    def _first_done(self, tiers: Sequence[str], costs: Mapping[str, float]) -> str | None:
        usable = [tier for tier in tiers if self.is_open(tier)]
        return min(usable, key=lambda tier: self._cost(tier, costs), default=None)

    def _cost(self, tier: str, costs: Mapping[str, float]) -> float:
        """Return when a tier would be done with one block more than it has to load already."""
        line = self._lines[tier]
        before = costs.get(tier)
        return line.unit_s + (before if before is not None else line.base_s + DOUBT * line.error_s)
