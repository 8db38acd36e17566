"""Train the byte-level BPE tokenizer and describe it for Hugging Face. Pure: takes texts, gives values."""

import json
from collections.abc import Iterable
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT: Final = "<|endoftext|>"
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
CALL: Final = "<tool_call>"
END_OF_CALL: Final = "</tool_call>"
SPECIAL: Final = (END_OF_TEXT, START, END, CALL, END_OF_CALL)
# The split of Qwen2 and Qwen3, so that every loader of those models cuts text in the same places.
SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn the merges from ``texts``; the special tokens get the ids 0 to 4."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        # A decoder that skips special tokens must still show tool calls, or no one could parse them.
        token["special"] = token["content"] not in (CALL, END_OF_CALL)
    return Tokenizer.from_str(json.dumps(described))


def tokenizer_config(chat_template: str, max_tokens: int) -> dict[str, object]:
    """Give the contents of ``tokenizer_config.json``."""
    return {
        "added_tokens_decoder": {
            str(number): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": content not in (CALL, END_OF_CALL),
            }
            for number, content in enumerate(SPECIAL)
        },
        "additional_special_tokens": [START, END],
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": max_tokens,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
