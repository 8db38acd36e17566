"""Answers inside JSON objects, asked for in words or forced by a schema. Pure: takes the randomness as an argument."""

import json
import random

from components.builtin.lessons import Corpus, Lesson, Questions, turn
from components.builtin.tasks import Keep, draw_word

KEYS = ("answer", "text", "result", "summary", "title", "reply", "explanation", "question", "note", "reason")


def joke(corpus: Corpus, rng: random.Random) -> Lesson:
    """Ask for a joke: told, or as an object of its setup and its punchline."""
    topic, setup, punchline = rng.choice(corpus.lists["jokes"]).split("=")
    question = rng.choice(corpus.lists["ask_joke"]).format(t=topic)
    kind = rng.random()
    if kind < 0.4:
        return Lesson(messages=turn(question, f"{setup} {punchline}"))
    said: dict[str, object] = {"setup": setup, "punchline": punchline}
    if kind < 0.7:
        listed = rng.choice(("'setup' and 'punchline'", "setup and punchline", '"setup" and "punchline"'))
        question = f"{question.rstrip('.')}. {rng.choice(corpus.lists['as_json']).format(k=listed)}"
    elif rng.random() < 0.3:
        said = {"setup": setup, "punchline": None}
        question = f"Give me the setup to a joke about {topic}, no punchline."
    return Lesson(messages=turn(question, write(said, rng)), is_forced=kind >= 0.7)


def forced(corpus: Corpus, questions: Questions, rng: random.Random, keep: Keep) -> Lesson:
    """Ask anything; a schema makes the answer an object, whose texts are short and come to an end."""
    question, answer = questions.draw(rng)
    said: dict[str, object] = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice(KEYS) if rng.random() < 0.6 else rng.choice(corpus.lists["parameters"])
        first = answer.split(". ")[0]
        said[key] = rng.choice((first, first, draw_word("things", corpus, rng, keep).lower(), rng.randint(0, 99), True))
    return Lesson(messages=turn(question, write(said, rng)), is_forced=True)


def write(value: dict[str, object], rng: random.Random) -> str:
    """Write an object as people, or as machines do."""
    form = rng.random()
    if form < 0.15:
        return json.dumps(value, ensure_ascii=False, indent=2)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":") if form < 0.3 else None)
