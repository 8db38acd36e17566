"""I/O. Keeps a number of streams busy with questions whose answers are known."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from msgspec.structs import replace

from components.chaos.ask import Target, ask
from components.chaos.history import Answer, Outcome, Question, judge

REFUSED_PAUSE_S = 0.1
"""Before a client asks again that was refused, or met nobody."""
MAX_ANSWERS = 1_000_000


class Load:
    """Answers so far, oldest first."""

    def __init__(self, target: Target, questions: Sequence[Question]) -> None:
        self.answers: list[Answer] = []
        self._target = target
        self._questions = itertools.cycle(questions)
        self._is_stopping = False

    async def run(self, streams: int) -> None:
        """Ask, `streams` at a time, until `stop`; waits for the answers that are on their way then."""
        async with anyio.create_task_group() as tasks:
            for _ in range(streams):
                tasks.start_soon(self._keep_asking)

    def stop(self) -> None:
        self._is_stopping = True

    async def _keep_asking(self) -> None:
        while not self._is_stopping and len(self.answers) < MAX_ANSWERS:
            answer = await ask(self._target, next(self._questions))
            self.answers.append(answer)
            if answer.status != 200:
                await anyio.sleep(REFUSED_PAUSE_S)


@asynccontextmanager
async def running_load(target: Target, questions: Sequence[Question], streams: int) -> AsyncIterator[Load]:
    """Keep `streams` busy while the context is open; at its end, wait for the answers that are on their way."""
    load = Load(target, questions)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.run, streams)
        yield load
        load.stop()


async def learn_answers(target: Target, questions: Sequence[Question], streams: int) -> list[Question]:
    """Ask everything twice, `streams` at a time, and return the questions with the answers that both times agreed on.

    Without faults; an engine whose arithmetic depends on what else is in its batch leaves some without.
    """
    first, second = [await _ask_all(target, questions, streams) for _ in range(2)]
    return [
        replace(question, expected=one.text)
        if one.text == other.text and judge(one) is judge(other) is Outcome.OK
        else question
        for question, one, other in zip(questions, first, second, strict=True)
    ]


async def _ask_all(target: Target, questions: Sequence[Question], streams: int) -> list[Answer]:
    answers: dict[int, Answer] = {}
    limiter = anyio.CapacityLimiter(streams)

    async def ask_one(number: int, question: Question) -> None:
        async with limiter:
            answers[number] = await ask(target, question)

    async with anyio.create_task_group() as tasks:
        for number, question in enumerate(questions):
            tasks.start_soon(ask_one, number, question)
    return [answers[number] for number in range(len(questions))]
