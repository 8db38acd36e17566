"""Measure how often greedy answers are exactly right on held-out phrasings. Pure, but for the network it runs."""

import random
from collections.abc import Iterable

import torch

from components.builtin.batches import Encoder, by_length, collate
from components.builtin.calls import call
from components.builtin.lessons import UNKNOWN, Corpus, Lesson, Questions, draw_unknown, turn
from components.builtin.network import Network
from components.builtin.reading import is_held_out
from components.builtin.tasks import arithmetic, capital, copying, counting, json_object, naming
from components.builtin.weather import weather


def held_out_lessons(corpus: Corpus, questions: Questions, num_tasks: int) -> dict[str, list[Lesson]]:
    """Give lessons by kind: phrasings and words that training never draws, and unseen draws of the other tasks."""
    rng = random.Random("held out")
    return {
        "questions": [Lesson(messages=turn(question, answer)) for question, answer in questions.held_out],
        "questions, lower case, no mark": [
            Lesson(messages=turn(question.lower().rstrip("?.!"), answer)) for question, answer in questions.held_out
        ],
        "exam": [Lesson(messages=turn(question, answer)) for question, answer in questions.exam],
        "unknown": [Lesson(messages=turn(draw_unknown(corpus, rng, is_held_out), UNKNOWN)) for _ in range(num_tasks)],
        "weather tool": [weather(corpus, questions, rng, is_held_out) for _ in range(num_tasks)],
        "any tool": [call(corpus, rng, is_held_out) for _ in range(num_tasks)],
        "json": [json_object(corpus, rng, is_held_out) for _ in range(num_tasks)],
        "copying": [copying(corpus, rng, is_held_out) for _ in range(num_tasks)],
        "names": [naming(corpus, questions, rng, is_held_out) for _ in range(num_tasks)],
        "counting": [counting(corpus, rng) for _ in range(num_tasks)],
        "capitals": [capital(corpus, rng) for _ in range(num_tasks)],
        "arithmetic": [arithmetic(corpus, rng) for _ in range(num_tasks)],
    }


def wrong_lessons(network: Network, encoder: Encoder, lessons: Iterable[Lesson]) -> list[tuple[Lesson, str]]:
    """Give the lessons whose greedy answers differ from the expected ones, with what was predicted instead.

    One forward pass tells: greedy decoding gives the expected answer when every token of it is the most likely one.
    """
    by_ids = {tuple(example.ids): (lesson, example) for lesson in lessons for example in [encoder.encode(lesson)]}
    wrong: list[tuple[Lesson, str]] = []
    for group in by_length([example for _, example in by_ids.values()], 4096):
        batch = collate(group)
        with torch.inference_mode():
            best = network(batch.inputs).argmax(-1)
        is_wrong = ((best != batch.targets) & batch.is_counted).any(1)
        for row in is_wrong.nonzero().flatten().tolist():
            said: str = encoder.tokenizer.decode(best[row][batch.is_counted[row]].tolist(), skip_special_tokens=False)
            wrong.append((by_ids[tuple(group[row].ids)][0], said))
    return wrong


def answer(network: Network, encoder: Encoder, lesson: Lesson, max_tokens: int = 300) -> str:
    """Write the greedy answer to a chat, or the continuation of a text; slow, without a cache."""
    prompt = lesson.text or encoder.render(lesson) + "<|im_start|>assistant\n"
    ids: list[int] = encoder.tokenizer.encode(prompt).ids
    count = len(ids)
    with torch.inference_mode():
        while len(ids) - count < max_tokens:
            hidden = network.hidden(torch.tensor([ids]))[:, -1]
            token = int(network.head(hidden).argmax())
            if token in (encoder.end, encoder.end_of_text):
                break
            ids.append(token)
    said: str = encoder.tokenizer.decode(ids[count:], skip_special_tokens=False)
    return said
