"""Pure. How long the mock engine's steps take."""

from bus.config import MockConfig


def step_seconds(config: MockConfig, prefill_tokens: int, decode_sequences: int, kv_tokens: int) -> float:
    """Return the duration of a step, in seconds: linear in what the step computes.

    `kv_tokens` is the context length summed over the decoding sequences, which is what attention reads.
    """
    return (
        config.step_base_s
        + config.prefill_token_s * prefill_tokens
        + config.decode_sequence_s * decode_sequences
        + config.kv_token_s * kv_tokens
    )
