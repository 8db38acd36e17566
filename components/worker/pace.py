"""Pure. How long the next step of an engine may take, going by those before it."""

from components.engines import StepStats

PATIENCE_S = 1.0
"""A step is waited for so long at least, however fast those before it were."""
SLOWER = 10.0
"""A step that takes so many times what was to be expected will not end soon."""
KEPT = 0.99
"""Of what is known, with each step that is new: one that was slow for once is forgotten after some hundred."""


class Pace:
    """Follows the steps of one engine: those with prompts take a while for each token of them."""

    def __init__(self) -> None:
        self._step_s = 0.0
        self._prefill_s = 0.0
        self._prefill_tokens = 0.0

    def note(self, stats: StepStats) -> None:
        """Take note of a step."""
        if stats.prefill_tokens:
            self._prefill_s = self._prefill_s * KEPT + stats.duration_s
            self._prefill_tokens = self._prefill_tokens * KEPT + stats.prefill_tokens
        else:
            self._step_s = max(self._step_s * KEPT, stats.duration_s)

    def patience_s(self, prefill_tokens: int) -> float | None:
        """Return how long to wait for a step, at most, with so many tokens of prompts to compute.

        None: the first of its kind may have to compile, or to find out how fast it is best done.
        """
        if not (self._prefill_tokens if prefill_tokens else self._step_s):
            return None
        prompts_s = prefill_tokens * self._prefill_s / self._prefill_tokens if prefill_tokens else 0.0
        return max(PATIENCE_S, SLOWER * (self._step_s + prompts_s))
