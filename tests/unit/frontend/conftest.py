"""A small byte-level BPE tokenizer, a model around it, and its oracle."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bus.messages.fleet import ModelCard
from frontend.model import ServedModel, build_model

TEXT = [
    "The quick brown fox jumps over the lazy dog. It's what a bus does: it stops, and it goes on.",
    '你好,世界。 naïve café über Straße 😀 🚌 \U0001f469\u200d\U0001f680 "quoted" \\ back\n\ttabs\r\n</s> <b>',
    "user system assistant content: 0123456789 {}[]()",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def oracle() -> Tokenizer:
    """Hugging Face's own tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def files(oracle: Tokenizer) -> dict[str, bytes]:
    """Files of a model, as its card names them."""
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": {"content": "<|endoftext|>"}}
    return {"tokenizer.json": oracle.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


@pytest.fixture(scope="session")
def card(oracle: Tokenizer) -> ModelCard:
    """A model's card."""
    return ModelCard(
        model="Tiny/Model-1.0",
        max_model_len=256,
        vocab_size=oracle.get_vocab_size(),
        eos_token_ids=[2],
        files={},
        created_at=1000.5,
    )


@pytest.fixture(scope="session")
def model(card: ModelCard, files: dict[str, bytes]) -> ServedModel:
    """The model as a frontend has it."""
    return build_model(card, files)
