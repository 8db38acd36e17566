"""Pure. How long a worker's engine steps take: what all workers of a model teach, and how much slower this one is.

A choice among workers falls on whichever is thought to be the fastest, so that what is learned of each alone decides by
its errors: a worker whose steps happened to look cheap gets everything, and one that was never used is never tried.
Workers count as equal until one has proved for long that it is not.
"""

from components.router.regression import Coefficients, Regression

FIRST_CHUNK_TOKENS = 2048
"""Largest step to count with before a larger one was seen."""
PACE_STEP = 1.25
"""A worker's pace is a power of this: what differs by less is equal."""
PACE_SLACK = 1.2
"""Steps that take so many times more, or less, than a pace says are still no proof of another one."""
PACE_STEPS = 20
"""Prefill steps that are proof; each of them keeps `PACE_KEPT` of the weight of those before it."""
PACE_KEPT = 0.98
MAX_PACE = 16.0
"""A step that stood still for longer counts as this."""
KNOWN_STEPS = 100
"""Prefill steps that all must have taken together before any are compared with what is known."""


class StepTimes:
    """What the workers of one model have in common. Steps that compute prompts are a kind of their own: on a GPU they
    begin with more than a decode step does, and a thousand decode steps between two of them say nothing of them."""

    def __init__(self, prior: Coefficients) -> None:
        self.chunk_tokens = FIRST_CHUNK_TOKENS
        """Most prompt tokens seen in one step: what an engine computes at a time."""
        self.prefill = Regression(prior)
        self.decode = Regression(prior)


class StepModel:
    """The model of one worker. Predictions change with `fit`, not with `observe`."""

    def __init__(self, times: StepTimes, pace: float = 1.0) -> None:
        self.pace = pace
        """Its steps take so many times as long as is known of all."""
        self._times = times
        self._num_compared = 0
        self._taken_s = 0.0
        """By late prefill steps, and below what all would have taken."""
        self._expected_s = 0.0

    @classmethod
    def like(cls, peers: list["StepModel"]) -> "StepModel":
        """Return the model of a worker that joins these: they learn together, and it is tried as one of the fastest."""
        if not peers:
            return cls(StepTimes(Coefficients()))
        return cls(peers[0]._times, min(peer.pace for peer in peers))

    @property
    def chunk_tokens(self) -> int:
        return self._times.chunk_tokens

    def observe(self, duration_s: float, prefill_tokens: int, decode_requests: int, kv_tokens: int) -> None:
        """Take one step into account."""
        times = self._times
        if not prefill_tokens:
            times.decode.observe(duration_s / self.pace, 0, decode_requests, kv_tokens)
            return
        times.chunk_tokens = max(times.chunk_tokens, prefill_tokens)
        times.prefill.observe(duration_s / self.pace, prefill_tokens, decode_requests, kv_tokens)
        if times.prefill.num_samples > KNOWN_STEPS:
            self._compare(duration_s, times.prefill.step_s(prefill_tokens, decode_requests, kv_tokens))

    def fit(self) -> None:
        """Let what was observed count."""
        self._times.prefill.fit()
        self._times.decode.fit()

    def step_s(self, prefill_tokens: float, decode_requests: float, kv_tokens: float) -> float:
        """Predict the duration of one step."""
        kind = self._times.prefill if prefill_tokens else self._times.decode
        return self.pace * kind.step_s(prefill_tokens, decode_requests, kv_tokens)

    def prefill_line(self, decode_requests: float, kv_tokens: float) -> tuple[float, float]:
        """Return seconds that any prefill takes beside what decodes, and seconds for each of its tokens.

        Each chunk of `chunk_tokens` costs a step; the line goes through the middle of those stairs.
        """
        prefill = self._times.prefill
        fixed_s = prefill.step_s(0, decode_requests, kv_tokens)
        token_s = prefill.coefficients.prefill_token_s + fixed_s / self._times.chunk_tokens
        return self.pace * fixed_s / 2, self.pace * token_s

    def prefill_s(self, num_tokens: float, decode_requests: float = 0, kv_tokens: float = 0) -> float:
        """Predict how long it takes to compute `num_tokens` of prompts beside what decodes; 0 tokens take no time."""
        if num_tokens <= 0:
            return 0.0
        fixed_s, token_s = self.prefill_line(decode_requests, kv_tokens)
        return fixed_s + token_s * num_tokens

    def _compare(self, taken_s: float, expected_s: float) -> None:
        self._num_compared += 1
        taken_s = min(max(taken_s, expected_s / MAX_PACE), expected_s * MAX_PACE)
        self._taken_s = PACE_KEPT * self._taken_s + taken_s
        self._expected_s = PACE_KEPT * self._expected_s + expected_s
        if self._num_compared < PACE_STEPS or not self._expected_s:
            return
        ratio = self._taken_s / self._expected_s
        self.pace = 1.0
        while ratio > self.pace * PACE_SLACK:
            self.pace *= PACE_STEP
        while ratio * PACE_SLACK < self.pace:
            self.pace /= PACE_STEP
