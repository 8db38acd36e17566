"""Pure. The model that everybody serves and asks for: single bytes for tokens, so that its text is made in a moment."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from components.worker.model import Model

NAME = "sim"
MAX_MODEL_LEN = 1536
EOS = 0


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer: an end token, then the bytes, then pairs of printable ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [letter for letter in alphabet if letter.isascii() and letter.isalpha()]
    pairs = [(one, other) for one in letters for other in letters][:255]
    vocab = {token: number for number, token in enumerate(["<|end|>", *alphabet, *(a + b for a, b in pairs)])}
    made = Tokenizer(models.BPE(vocab, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made


def decode(tokens: Sequence[int]) -> str:
    """Return the text of a whole answer, by the tokenizer's own decoder."""
    text: str = tokenizer().decode(list(tokens))
    return text


@cache
def model() -> Model:
    """Return what a worker would have read from a directory."""
    return Model(
        name=NAME,
        directory=Path(),
        vocab_size=tokenizer().get_vocab_size(),
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=frozenset({EOS}),
        files={"tokenizer.json": tokenizer().to_str().encode(), "tokenizer_config.json": b"{}"},
    )
