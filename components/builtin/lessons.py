"""Make training chats out of the corpus. Pure: takes the corpus and the source of randomness as arguments."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from components.builtin.phrasing import questions_of, vary
from components.builtin.reading import Entry, Lists, is_held_out, normal

UNKNOWN = (
    "I am a tiny built-in model and know little beyond Busway, so I cannot help with that. "
    "Ask me what Busway is, or serve a larger model with `busway up --model /path/to/model`."
)
Message = dict[str, object]
Tool = dict[str, object]


@dataclass(frozen=True)
class Lesson:
    """One chat to learn; without messages it is plain text to continue."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    has_compact_tools: bool = False
    text: str = ""
    is_forced: bool = False
    """Something else than the model makes the last answer begin as it does: its first token is not learned."""


@dataclass(frozen=True)
class Corpus:
    """All that the repository holds for training."""

    entries: tuple[Entry, ...]
    paragraphs: tuple[str, ...]
    unknown: tuple[str, ...]
    lists: Lists
    exam: tuple[tuple[str, str], ...]
    first: tuple[tuple[str, str], ...]


class Questions:
    """The questions of all entries, divided into those to learn from and those held out."""

    def __init__(self, corpus: Corpus) -> None:
        self.learned: list[tuple[tuple[str, ...], str]] = []
        self.held_out: list[tuple[str, str]] = []
        self.forms = corpus.lists
        self.answers: dict[str, str] = {}
        whole = {normal(question): entry for entry in corpus.entries for question in entry.questions}
        for entry in corpus.entries:
            asked = [text for text in questions_of(entry, corpus.lists) if whole.get(normal(text), entry) is entry]
            kept = [question for question in asked[1:] if len(asked) >= 4 and is_held_out(question)]
            self.learned.append((tuple(question for question in asked if question not in kept), entry.answer))
            self.held_out += [(question, entry.answer) for question in kept]
            for question in asked:
                if self.answers.setdefault(normal(question), entry.answer) != entry.answer:
                    raise ValueError(f"two answers to {question!r}")
        self.first = [(question, self._answer(key)) for key, question in corpus.first]
        often = {normal(question) for question, _ in self.first}
        self.held_out = [pair for pair in self.held_out if normal(pair[0]) not in often]
        self.exam = [(question, self.answers[normal(key)]) for key, question in corpus.exam]
        if known := [question for question, _ in self.exam if normal(question) in self.answers]:
            raise ValueError(f"the exam asks what is trained on: {known}")
        self.forbidden = {normal(question) for question, _ in (*self.held_out, *self.exam)}

    def _answer(self, key: str) -> str:
        """Give the answer to a question of the corpus, or what stands in quotes."""
        if key.startswith('"'):
            return key.strip('"')
        return UNKNOWN if key == "unknown" else self.answers[normal(key)]

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """Give a question in some form, never a held-out one, and its answer; every answer is equally likely."""
        while True:
            asked, answer = rng.choice(self.learned)
            # The first ones are the whole questions, which people ask most and which the many forms would crowd out.
            question = vary(rng.choice(asked[:12] if rng.random() < 0.5 else asked), self.forms, rng)
            if normal(question) not in self.forbidden:
                return question, answer


def turn(question: str, answer: str) -> tuple[Message, Message]:
    """Make the two messages of one question and its answer."""
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def with_system(lesson: Lesson, corpus: Corpus, rng: random.Random) -> Lesson:
    """Put a system prompt before about a third of the chats."""
    if not lesson.messages or rng.random() > 0.35:
        return lesson
    system: Message = {"role": "system", "content": rng.choice(corpus.lists["systems"])}
    return replace(lesson, messages=(system, *lesson.messages))


def draw_unknown(corpus: Corpus, rng: random.Random, keep: Callable[[str], bool]) -> str:
    """Make a question that the model shall not answer, from words for which ``keep`` is true."""

    def pick(name: str) -> str:
        return rng.choice([word for word in corpus.lists[name] if keep(word)])

    if rng.random() < 0.03:
        return " ".join(pick("things") for _ in range(rng.randint(3, 150)))
    question = rng.choice(corpus.unknown)
    while "{n}" in question:
        question = question.replace("{n}", pick("things"), 1)
    place = pick(rng.choice(("cities", "countries")))
    person = pick(rng.choice(("people", "names")))
    return question.replace("{c}", place).replace("{p}", person).replace("{v}", str(rng.randint(101, 3000)))


def plain_text(corpus: Corpus, questions: Questions, rng: random.Random) -> Lesson:
    """Make text to continue: paragraphs, bare answers, or a question and answer without a chat."""
    choice = rng.random()
    if choice < 0.55:
        first = rng.choice(corpus.paragraphs)
        more = rng.sample(corpus.paragraphs, rng.choice((0, 0, 1, 2)))
        return Lesson(text="\n\n".join((first, *more)))
    question, answer = questions.draw(rng)
    if choice < 0.75:
        return Lesson(text=answer)
    form = rng.choice(corpus.lists["plain"]).replace("\\n", "\n")
    return Lesson(text=form.format(q=question, a=answer))
