"""Pure. What a request asks of the sampler, as bits: rows that ask alike are handled together."""

from bus.messages.inference import Sampling

RANDOM = 1
"""Chosen by chance; without this bit, the likeliest token."""
TRUNCATED = 2
"""By chance among the likeliest tokens only: top-k, top-p, min-p."""
ADJUSTED = 4
"""Logits are changed first: bias, penalties, banned stop tokens, a grammar."""
LOGPROBS = 8


def features_of(sampling: Sampling, *, is_restricted: bool) -> int:
    """Return the bits that `sampling` sets; `is_restricted` says whether some tokens may not come now."""
    features = 0
    if sampling.temperature > 0.0:
        features |= RANDOM
        if sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0:
            features |= TRUNCATED
    if is_restricted or sampling.logit_bias or has_penalties(sampling):
        features |= ADJUSTED
    if sampling.top_logprobs is not None:
        features |= LOGPROBS
    return features


def has_penalties(sampling: Sampling) -> bool:
    """Say whether tokens that were seen before are more or less likely for it."""
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0
