"""Pure. Which of the workers, once it is known what each would cost."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

Mode = Literal["kv", "least_loaded", "power_of_two", "round_robin", "random"]

TIE_S = 1e-3
"""Costs that differ by less are equal: what estimates have wrong, they have wrong of all workers alike."""


Rank = tuple[int, float]
"""Tokens that a worker would have to compute, and those that it computed lately: equal costs go where the prefix is,
and cold prompts where they push the least out of a cache."""


def pick_cheapest(
    costs: Sequence[float], rank: Callable[[list[int]], list[Rank]], rng: random.Random, temperature_s: float = 0.0
) -> int | None:
    """Return the position of the least cost in seconds, None when all are infinite.

    Among equal ones it is the one of the least rank, then chance decides. With a temperature, a worker that costs
    `temperature_s` more is chosen e times less often.
    """
    least = min(costs, default=math.inf)
    if least == math.inf:
        return None
    if temperature_s > 0.0:
        weights = [math.exp((least - cost) / temperature_s) for cost in costs]
        return rng.choices(range(len(costs)), weights)[0]
    limit = least + TIE_S
    tied = [position for position, cost in enumerate(costs) if cost <= limit]
    if len(tied) == 1:
        return tied[0]
    ranks = rank(tied)
    first = min(ranks)
    return rng.choice([position for position, other in zip(tied, ranks, strict=True) if other == first])


class BlindChoice:
    """The modes that know nothing of prefixes: for comparison, and for engines that tell nothing."""

    def __init__(self, mode: Mode, rng: random.Random) -> None:
        self._mode = mode
        self._rng = rng
        self._turn = 0

    def pick(self, present: Sequence[int], num_requests: Sequence[int]) -> int | None:
        """Return one of the workers `present`; `num_requests` counts, by worker, those it has. None when none is."""
        if not present:
            return None
        if self._mode == "round_robin":
            self._turn += 1
            return present[(self._turn - 1) % len(present)]
        if self._mode == "random":
            return self._rng.choice(present)
        if self._mode == "power_of_two":
            present = self._rng.sample(present, min(2, len(present)))
        fewest = min(num_requests[worker] for worker in present)
        return self._rng.choice([worker for worker in present if num_requests[worker] == fewest])
