"""Pure. How long the mock engine's steps take."""

from bus.config import MockConfig


def step_seconds(config: MockConfig, prefill_tokens: int, decode_sequences: int, kv_tokens: int) -> float:
    """Return the duration of a step, in seconds; never negative.

    `kv_tokens` is the context length summed over the decoding sequences, which is what attention reads.
    """
    duration_s = config.step_base_s
    if prefill_tokens:
        duration_s += (
            config.prefill_base_s
            + config.prefill_token_s * prefill_tokens
            + config.prefill_token_squared_s * prefill_tokens * prefill_tokens
        )
    if decode_sequences:
        duration_s += (
            config.decode_base_s
            + config.decode_sequence_s * decode_sequences
            + config.kv_token_s * kv_tokens
            + config.kv_token_squared_s * kv_tokens * kv_tokens
        )
    return max(0.0, duration_s)
