"""Pure. The text of the mock engine: each token follows from the prompt and its output position alone.

So tests know every token of every request in advance, and a request that moves between workers goes on as if it
had never moved:

    tokens = [mock_token(prompt_seed(prompt), offset, vocab_size) for offset in range(max_tokens)]
"""

import struct
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from bus.messages.base import pack_u32

STRIDE = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: neighbouring offsets land far from each other."""

MASK = 2**64 - 1
MOCK_DIMENSIONS = 32


def prompt_seed(prompt: Sequence[int]) -> int:
    """Return the hash of the prompt's token ids that all its tokens follow from."""
    return xxh3_64_intdigest(pack_u32(prompt))


def mock_vector(prompt: Sequence[int]) -> bytes:
    """Return the embedding of a prompt, float32: the more of their tokens two prompts share, the closer they are."""
    sums = [0.0] * MOCK_DIMENSIONS
    for token in prompt:
        state = (token + 1) * STRIDE & MASK
        for place in range(MOCK_DIMENSIONS):
            state = (state ^ state >> 31) * STRIDE & MASK
            sums[place] += (state >> 40) / 2**23 - 1.0
    length = sum([each * each for each in sums]) ** 0.5 or 1.0
    return struct.pack(f"<{MOCK_DIMENSIONS}f", *[each / length for each in sums])


def plain_ids(vocab_size: int) -> range:
    """Return ids that are ordinary text in every tokenizer of that size.

    Special and byte tokens come first (SentencePiece: below 260) or last (Llama 3: the last 256 of 128,256; GPT-2
    style: the last few), so both ends are left out.
    """
    if vocab_size < 1024:
        return range(vocab_size // 2, max(vocab_size // 2 + 1, vocab_size * 3 // 4))
    return range(320, vocab_size - max(64, vocab_size // 64))


def mock_token(seed: int, offset: int, vocab_size: int) -> int:
    """Return the token at output position `offset` of the prompt with this seed."""
    ids = plain_ids(vocab_size)
    return ids.start + ((seed + offset * STRIDE & MASK) >> 33) % len(ids)
