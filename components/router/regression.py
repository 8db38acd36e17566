"""Pure. How long engine steps take, learned from steps that were measured.

    duration = step_s + prefill_token_s * prefill tokens + decode_request_s * decoding requests + kv_token_s * context

Fitted by recursive least squares on relative errors, so that a decode step of 10 ms counts as much as a prefill of 1 s.
Coefficients are never negative (a step does not get shorter by more work), and what the steps do not tell yet, such as
the cost of prefill before the first prompt, comes from the prior.
"""

import msgspec

FORGETTING = 0.999
"""Weight that the past keeps at each sample: the last 1,000 samples, of all workers together, make the fit."""
PRIOR_WEIGHT = 0.05
"""Of a coefficient's prior, in samples."""
SHORTEST_S = 1e-5
"""Relative errors are taken against at least this."""
SWEEPS = 4
"""Of coordinate descent at each fit: it starts where the last one ended."""
FIT_EVERY = 16
"""Samples that change little, once there are `FIT_EVERY` times as many: so many are waited for."""


class Coefficients(msgspec.Struct, frozen=True):
    """Seconds of a step: in all, for each prompt token, each decoding request, each token of their context."""

    step_s: float = 0.005
    prefill_token_s: float = 3e-5
    decode_request_s: float = 2e-5
    kv_token_s: float = 1e-9


_SCALES = (1.0, 1024.0, 16.0, 65536.0)
"""Ordinary sizes of the four features: they bring the equations into one order of magnitude."""


class Regression:
    """The fit to one kind of steps. `coefficients` change with `fit`, not with `observe`."""

    def __init__(self, prior: Coefficients) -> None:
        self.coefficients = prior
        self.num_samples = 0
        self._num_fitted = 0
        values = (prior.step_s, prior.prefill_token_s, prior.decode_request_s, prior.kv_token_s)
        self._theta = [max(value * scale, 1e-12) for value, scale in zip(values, _SCALES, strict=True)]
        self._prior = list(self._theta)
        self._normal = (0.0,) * 10
        """The upper triangle of the normal equations, row by row, and below their right side."""
        self._right = (0.0,) * 4

    def observe(self, duration_s: float, prefill_tokens: int, decode_requests: int, kv_tokens: int) -> None:
        """Take one step into account."""
        self.num_samples += 1
        weight = 1.0 / max(duration_s, SHORTEST_S) ** 2
        x1, x2, x3 = prefill_tokens / _SCALES[1], decode_requests / _SCALES[2], kv_tokens / _SCALES[3]
        w1, w2, w3 = weight * x1, weight * x2, weight * x3
        # Written out: routers hear some thousand steps a second.
        n00, n01, n02, n03, n11, n12, n13, n22, n23, n33 = self._normal
        self._normal = (
            FORGETTING * n00 + weight,
            FORGETTING * n01 + w1,
            FORGETTING * n02 + w2,
            FORGETTING * n03 + w3,
            FORGETTING * n11 + w1 * x1,
            FORGETTING * n12 + w1 * x2,
            FORGETTING * n13 + w1 * x3,
            FORGETTING * n22 + w2 * x2,
            FORGETTING * n23 + w2 * x3,
            FORGETTING * n33 + w3 * x3,
        )
        r0, r1, r2, r3 = self._right
        self._right = (
            FORGETTING * r0 + weight * duration_s,
            FORGETTING * r1 + w1 * duration_s,
            FORGETTING * r2 + w2 * duration_s,
            FORGETTING * r3 + w3 * duration_s,
        )

    def fit(self) -> None:
        """Solve for the coefficients, none below zero, if there is enough that is new."""
        if self.num_samples - self._num_fitted < min(1 + self.num_samples // FIT_EVERY, FIT_EVERY):
            return
        self._num_fitted = self.num_samples
        n00, n01, n02, n03, n11, n12, n13, n22, n23, n33 = self._normal
        p0, p1, p2, p3 = [PRIOR_WEIGHT / prior**2 for prior in self._prior]
        # What a coefficient is when the others are 0, before it is divided by its own weight.
        r0, r1, r2, r3 = [right + PRIOR_WEIGHT / prior for right, prior in zip(self._right, self._prior, strict=True)]
        t0, t1, t2, t3 = self._theta
        for _ in range(SWEEPS):
            t0 = max(0.0, (r0 - n01 * t1 - n02 * t2 - n03 * t3) / (n00 + p0))
            t1 = max(0.0, (r1 - n01 * t0 - n12 * t2 - n13 * t3) / (n11 + p1))
            t2 = max(0.0, (r2 - n02 * t0 - n12 * t1 - n23 * t3) / (n22 + p2))
            t3 = max(0.0, (r3 - n03 * t0 - n13 * t1 - n23 * t2) / (n33 + p3))
        self._theta = [t0, t1, t2, t3]
        self.coefficients = Coefficients(t0 / _SCALES[0], t1 / _SCALES[1], t2 / _SCALES[2], t3 / _SCALES[3])

    def step_s(self, prefill_tokens: float, decode_requests: float, kv_tokens: float) -> float:
        """Predict the duration of one step."""
        c = self.coefficients
        return (
            c.step_s
            + c.prefill_token_s * prefill_tokens
            + c.decode_request_s * decode_requests
            + c.kv_token_s * kv_tokens
        )
