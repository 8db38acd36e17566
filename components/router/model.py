"""Pure. How long a worker's engine steps take, learned from the steps it reports.

    duration = step_s + prefill_token_s * prefill tokens + decode_request_s * decoding requests + kv_token_s * context

Fitted by recursive least squares on relative errors, so that a decode step of 10 ms counts as much as a prefill of 1 s.
Coefficients are never negative (a step does not get shorter by more work), and what the steps do not tell yet, such as
the cost of prefill before the first prompt, comes from the prior.
"""

import msgspec

FORGETTING = 0.995
"""Weight that the past keeps at each sample: the last 200 samples make the model."""
PRIOR_WEIGHT = 0.05
"""Of a coefficient's prior, in samples."""
SHORTEST_S = 1e-5
"""Relative errors are taken against at least this."""
SWEEPS = 4
"""Of coordinate descent at each fit: it starts where the last one ended, and there is one after every report."""
FIRST_CHUNK_TOKENS = 2048
"""Largest step to count with before a larger one was seen."""


class Coefficients(msgspec.Struct, frozen=True):
    """Seconds of a step: in all, for each prompt token, each decoding request, each token of their context."""

    step_s: float = 0.005
    prefill_token_s: float = 3e-5
    decode_request_s: float = 2e-5
    kv_token_s: float = 1e-9


_SCALES = (1.0, 1024.0, 16.0, 65536.0)
"""Ordinary sizes of the four features: they bring the equations into one order of magnitude."""


class StepModel:
    """The model of one worker. `coefficients` change with `fit`, not with `observe`."""

    def __init__(self, prior: Coefficients, chunk_tokens: int = FIRST_CHUNK_TOKENS) -> None:
        self.coefficients = prior
        self.chunk_tokens = chunk_tokens
        """Most prompt tokens seen in one step: what the engine computes at a time."""
        self.num_samples = 0
        values = (prior.step_s, prior.prefill_token_s, prior.decode_request_s, prior.kv_token_s)
        self._theta = [max(value * scale, 1e-12) for value, scale in zip(values, _SCALES, strict=True)]
        self._prior = list(self._theta)
        self._normal = [[0.0] * 4 for _ in range(4)]
        self._right = [0.0] * 4

    @classmethod
    def like(cls, peers: list["StepModel"]) -> "StepModel":
        """Return a model to begin with: the mean of those peers that have learned, or the default."""
        learned = [peer for peer in peers if peer.num_samples]
        if not learned:
            return cls(Coefficients())
        rows = [msgspec.structs.astuple(peer.coefficients) for peer in learned]
        mean = Coefficients(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
        return cls(mean, max(peer.chunk_tokens for peer in learned))

    def observe(self, duration_s: float, prefill_tokens: int, decode_requests: int, kv_tokens: int) -> None:
        """Take one step into account."""
        self.chunk_tokens = max(self.chunk_tokens, prefill_tokens)
        self.num_samples += 1
        weight = 1.0 / max(duration_s, SHORTEST_S) ** 2
        features = (1.0, prefill_tokens / _SCALES[1], decode_requests / _SCALES[2], kv_tokens / _SCALES[3])
        right = self._right
        for row, feature in enumerate(features):
            weighted = weight * feature
            right[row] = FORGETTING * right[row] + weighted * duration_s
            line = self._normal[row]
            for column in range(4):
                line[column] = FORGETTING * line[column] + weighted * features[column]

    def fit(self) -> None:
        """Solve for the coefficients, none below zero."""
        theta, normal, right = self._theta, self._normal, self._right
        pulls = [PRIOR_WEIGHT / prior**2 for prior in self._prior]
        for _ in range(SWEEPS):
            for row in range(4):
                line = normal[row]
                rest = sum([line[column] * theta[column] for column in range(4) if column != row])
                gain = right[row] - rest + pulls[row] * self._prior[row]
                theta[row] = max(0.0, gain / (line[row] + pulls[row]))
        self.coefficients = Coefficients(*(value / scale for value, scale in zip(theta, _SCALES, strict=True)))

    def step_s(self, prefill_tokens: float, decode_requests: float, kv_tokens: float) -> float:
        """Predict the duration of one step."""
        c = self.coefficients
        return (
            c.step_s
            + c.prefill_token_s * prefill_tokens
            + c.decode_request_s * decode_requests
            + c.kv_token_s * kv_tokens
        )

    def prefill_line(self, decode_requests: float, kv_tokens: float) -> tuple[float, float]:
        """Return seconds that any prefill takes beside what decodes, and seconds for each of its tokens.

        Each chunk of `chunk_tokens` costs a step; the line goes through the middle of those stairs.
        """
        fixed_s = self.step_s(0, decode_requests, kv_tokens)
        return fixed_s / 2, self.coefficients.prefill_token_s + fixed_s / self.chunk_tokens

    def prefill_s(self, num_tokens: float, decode_requests: float = 0, kv_tokens: float = 0) -> float:
        """Predict how long it takes to compute `num_tokens` of prompts beside what decodes; 0 tokens take no time."""
        if num_tokens <= 0:
            return 0.0
        fixed_s, token_s = self.prefill_line(decode_requests, kv_tokens)
        return fixed_s + token_s * num_tokens
