"""Turn chats into padded batches of token ids. Pure: takes the template and the tokenizer as arguments."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import minijinja
import torch
from tokenizers import Tokenizer
from torch import Tensor

from components.builtin.lessons import Lesson
from components.builtin.tokenizer import END, END_OF_TEXT, SPECIAL, START

CONTEXT_SHARE = 0.1
NOISE_SHARE = 0.015


@dataclass(frozen=True)
class Example:
    """Token ids, and for each one whether the model has to say it."""

    ids: list[int]
    is_answer: list[bool]


@dataclass(frozen=True)
class Batch:
    """Tensors ``(rows, length)``: inputs, targets one place later, and which targets count."""

    inputs: Tensor
    targets: Tensor
    is_counted: Tensor


class Encoder:
    """Apply the chat template and the tokenizer, and mark what the model has to say itself."""

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = SPECIAL.index(END)
        self.end_of_text = SPECIAL.index(END_OF_TEXT)
        self.answer_mark = tokenizer.encode(f"{START}assistant\n").ids
        self.environment = minijinja.Environment(templates={"chat": template})
        self.environment.add_filter("tojson", to_json)
        self.compact = minijinja.Environment(templates={"chat": template})
        self.compact.add_filter("tojson", to_compact_json)

    def render(self, lesson: Lesson) -> str:
        """Give the chat as text."""
        environment = self.compact if lesson.has_compact_tools else self.environment
        return environment.render_template("chat", messages=list(lesson.messages), tools=list(lesson.tools) or None)

    def encode(self, lesson: Lesson) -> Example:
        """Give the tokens of a chat or text, and mark the answers with their end tokens."""
        if lesson.text:
            text: list[int] = [*self.tokenizer.encode(lesson.text).ids, self.end_of_text]
            return Example(text, [True] * len(text))
        ids: list[int] = self.tokenizer.encode(self.render(lesson)).ids[:-1]
        marks = [False] * len(ids)
        is_inside = False
        for at, token in enumerate(ids):
            marks[at] = is_inside
            is_inside = (
                token != self.end if is_inside else ids[at + 1 - len(self.answer_mark) : at + 1] == self.answer_mark
            )
        if lesson.is_forced:
            marks[max(at for at in range(1, len(ids)) if marks[at] and not marks[at - 1])] = False
        return Example(ids, marks)


def to_json(value: object) -> str:
    """Write JSON as transformers does for chat templates."""
    return json.dumps(value, ensure_ascii=False)


def to_compact_json(value: object) -> str:
    """Write JSON without spaces, as some renderers do."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def collate(examples: list[Example]) -> Batch:
    """Pad to the longest; the answers count."""
    length = max(len(example.ids) for example in examples) - 1
    inputs = torch.zeros((len(examples), length), dtype=torch.long)
    targets = torch.zeros((len(examples), length), dtype=torch.long)
    is_counted = torch.zeros((len(examples), length), dtype=torch.bool)
    for row, example in enumerate(examples):
        count = len(example.ids) - 1
        inputs[row, :count] = torch.tensor(example.ids[:-1])
        targets[row, :count] = torch.tensor(example.ids[1:])
        is_counted[row, :count] = torch.tensor(example.is_answer[1:])
    return Batch(inputs, targets, is_counted)


def drill(rng: random.Random, vocab_size: int) -> Example:
    """Make senseless tokens that come twice; only a network that can copy predicts the second half."""
    half = [rng.randrange(len(SPECIAL), vocab_size) for _ in range(rng.randint(8, 40))]
    return Example(half * 2, [False] * len(half) + [True] * len(half))


def blur(batch: Batch, generator: torch.Generator, vocab_size: int) -> Batch:
    """Count also a share of the context, and spoil a share of the answer tokens that are read, to learn to recover."""
    inputs, shape = batch.inputs.clone(), batch.inputs.shape
    is_read_answer = torch.roll(batch.is_counted, 1, dims=1) & (inputs >= len(SPECIAL))
    is_noise = is_read_answer & (torch.rand(shape, generator=generator) < NOISE_SHARE)
    inputs[is_noise] = torch.randint(len(SPECIAL), vocab_size, (int(is_noise.sum()),), generator=generator)
    is_context = (batch.targets != 0) & (torch.rand(shape, generator=generator) < CONTEXT_SHARE)
    return Batch(inputs, batch.targets, batch.is_counted | is_context)


def by_length(examples: list[Example], num_tokens: int) -> Iterator[list[Example]]:
    """Group examples of like length, so that little is padded, into batches of at most ``num_tokens`` tokens."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if group and (len(group) + 1) * len(example.ids) > num_tokens:
            yield group
            group = []
        group.append(example)
    if group:
        yield group
