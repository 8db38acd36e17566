"""Load the corpus files and draw lessons from all kinds. Does I/O: reads ``corpus/`` and the chat template."""

import random
from pathlib import Path

from components.builtin.calls import call
from components.builtin.lessons import UNKNOWN, Corpus, Lesson, Questions, draw_unknown, plain_text, turn, with_system
from components.builtin.objects import forced, joke
from components.builtin.phrasing import vary
from components.builtin.reading import is_held_out, parse_entries, parse_lists, parse_pairs, strip_comments
from components.builtin.tasks import arithmetic, capital, copying, counting, json_object, naming
from components.builtin.weather import weather

HERE = Path(__file__).parent
ENTRY_FILES = ("busway", "serving", "parts", "bus", "kv", "usage", "chat", "terms", "longer")


def load_corpus() -> Corpus:
    """Read all files of the corpus."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((HERE / "corpus").glob("*.txt"))}
    entries = tuple(entry for name in ENTRY_FILES for entry in parse_entries(texts[name]))
    longer = tuple(entry.answer for entry in parse_entries(texts["longer"]))
    return Corpus(
        entries=entries,
        paragraphs=(*strip_comments(texts["prose"]).split("\n\n"), *longer),
        unknown=tuple(strip_comments(texts["unknown"]).splitlines()),
        lists=parse_lists(texts["words"]) | parse_lists(texts["forms"]),
        exam=parse_pairs(texts["exam"]),
        first=parse_pairs(texts["first"]),
    )


def load_template() -> str:
    """Read the chat template."""
    return (HERE / "chat_template.jinja").read_text(encoding="utf-8").strip()


def is_learned(word: str) -> bool:
    """Say whether a word may be trained on."""
    return not is_held_out(word)


def draw_lesson(corpus: Corpus, questions: Questions, rng: random.Random) -> Lesson:
    """Draw one lesson; a third of them ask what an entry answers, the rest is shared by the tasks."""
    kind = rng.random()
    if kind < 0.08:
        lesson = Lesson(messages=turn(*rng.choice(questions.first)))
    elif kind < 0.33:
        lesson = Lesson(messages=turn(*questions.draw(rng)))
    elif kind < 0.39:
        lesson = talk(corpus, questions, rng)
    elif kind < 0.45:
        lesson = Lesson(messages=turn(vary(draw_unknown(corpus, rng, is_learned), corpus.lists, rng), UNKNOWN))
    elif kind < 0.53:
        lesson = weather(corpus, questions, rng, is_learned)
    elif kind < 0.67:
        lesson = call(corpus, rng, is_learned)
    elif kind < 0.71:
        lesson = json_object(corpus, rng, is_learned)
    elif kind < 0.74:
        lesson = joke(corpus, rng)
    elif kind < 0.77:
        lesson = forced(corpus, questions, rng, is_learned)
    elif kind < 0.84:
        lesson = copying(corpus, rng, is_learned)
    elif kind < 0.86:
        lesson = naming(corpus, questions, rng, is_learned)
    elif kind < 0.885:
        lesson = counting(corpus, rng)
    elif kind < 0.945:
        lesson = arithmetic(corpus, rng)
    elif kind < 0.96:
        lesson = capital(corpus, rng)
    else:
        lesson = plain_text(corpus, questions, rng)
    return with_system(lesson, corpus, rng)


def talk(corpus: Corpus, questions: Questions, rng: random.Random) -> Lesson:
    """Make a chat of several turns, where later questions may begin with "And"."""
    messages: tuple[dict[str, object], ...] = ()
    for number in range(rng.choice((2, 2, 3, 3, 4, 6))):
        if rng.random() < 0.12:
            question, answer = vary(draw_unknown(corpus, rng, is_learned), corpus.lists, rng), UNKNOWN
        else:
            question, answer = questions.draw(rng)
        if number and rng.random() < 0.15:
            question = f"And {question[:1].lower()}{question[1:]}"
        messages += turn(question, answer)
    return Lesson(messages=messages)
