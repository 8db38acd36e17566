"""I/O. Chaos from its first answer to its verdict: learn what is right, disturb, ask meanwhile, and compare."""

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
from msgspec.structs import replace

from bus.config import Config
from bus.errors import NoWorker
from components.bench.requests import render_prompt
from components.bench.results import LoadOptions
from components.chaos.ask import Target
from components.chaos.faults import Fault, Schedule
from components.chaos.history import Answer, Downtime, Outcome, Question, Verdict, check, gap_across
from components.chaos.inflict import inflict, list_processes
from components.chaos.load import learn_answers, running_load
from components.chaos.slots import Held, find_leaks

QUESTIONS_A_STREAM = 2

Say = Callable[[str], None]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class ChaosOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do to a running system, and what to ask of it meanwhile."""

    target: Target
    faults: tuple[Fault, ...]
    duration_s: Seconds = 60.0
    every_s: Seconds = 5.0
    """From the end of one fault to the next."""
    streams: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 64
    seed: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    verdict: Verdict
    num_known: int
    """Questions whose answer was known; of the others only the length is."""
    num_questions: int
    num_faults: int
    gaps: dict[str, float]
    """By fault: the longest time, in seconds, that a stream stood still across one of them."""
    leaked: Held
    """What workers still hold though nobody waits for it."""

    @property
    def is_good(self) -> bool:
        return self.verdict.is_good and not self.leaked


async def run_chaos(config: Config, options: ChaosOptions, say: Say) -> Report:
    """Disturb the system in `config.state_dir` for `duration_s`, or until Ctrl-C.

    Raises `NoWorker` when what was ended does not come back.
    """
    questions = make_questions(options)
    say(f"asking {len(questions)} questions without faults, to know the answers")
    questions = await learn_answers(options.target, questions, options.streams)
    num_known = sum(question.expected is not None for question in questions)
    if num_known < len(questions):
        say(
            f"  {len(questions) - num_known} were not answered the same way twice: of these, only the length is checked"
        )
    disturbance = _Disturbance(options, Path(config.state_dir), say)
    failure: NoWorker | None = None
    async with running_load(options.target, questions, options.streams) as load, anyio.create_task_group() as tasks:
        tasks.start_soon(disturbance.stop_at_signal)
        try:
            await disturbance.run()
        except NoWorker as error:
            failure = error  # a task group would wrap it
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return Report(
        verdict=check(load.answers, disturbance.downtimes),
        num_known=num_known,
        num_questions=len(questions),
        gaps=worst_gaps(load.answers, disturbance.done),
        num_faults=len(disturbance.done),
        leaked=await find_leaks(config),
    )


class _Disturbance:
    """One fault after the other, and what was done."""

    def __init__(self, options: ChaosOptions, state_dir: Path, say: Say) -> None:
        self.downtimes: list[Downtime] = []
        self.done: list[tuple[str, float, float]] = []
        """Names of faults, when they were done, and when they were over."""
        self._options = options
        self._schedule = Schedule(options.faults, random.Random(options.seed))
        self._state_dir = state_dir
        self._say = say
        self._stopping = anyio.Event()

    async def run(self) -> None:
        """Disturb for as long as was asked for, or until the signal; what has begun is undone first."""
        started_at = time.monotonic()
        while time.monotonic() - started_at < self._options.duration_s:
            with anyio.move_on_after(self._options.every_s):
                await self._stopping.wait()
                return
            processes = [(process.name, process.role) for process in list_processes(self._state_dir)]
            fault, name = self._schedule.pick(processes)
            at = time.monotonic()
            downtime = await inflict(fault, name, self._state_dir, self._options.target)
            if downtime is not None:
                self.downtimes.append(downtime)
            over_at = time.monotonic()
            self.done.append((fault.name, at, over_at))
            over = "went on" if fault.thaw_after_s else "serves again" if downtime else "started again"
            self._say(f"{at - started_at:6.1f} s  {fault.name:<16} {name:<12} {over} after {over_at - at:.2f} s")

    async def stop_at_signal(self) -> None:
        """Let Ctrl-C end the faults and not the verdict; a second one ends all."""
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                self._say("no more faults: waiting for the answers that are on their way (Ctrl-C again stops at once)")
                self._stopping.set()
                return


def worst_gaps(answers: Sequence[Answer], done: Sequence[tuple[str, float, float]]) -> dict[str, float]:
    """Pure. Return by fault the longest time, in seconds, that a stream stood still across one of them."""
    gaps: dict[str, float] = {}
    for name, at, over_at in done:
        gaps[name] = max(gaps.get(name, 0.0), gap_across(answers, at, over_at))
    return gaps


def make_questions(options: ChaosOptions) -> list[Question]:
    """Return prompts of different lengths, the same for the same seed; half of each pair share their beginning."""
    base = LoadOptions(url="http://localhost", model=options.target.model, seed=options.seed, prompt_words=32)
    questions = []
    for number in range(QUESTIONS_A_STREAM * options.streams):
        words = 16 + 48 * (number % 4)
        beginning = render_prompt(replace(base, prompt_words=words), number // 2)
        questions.append(Question(f"{beginning} {number}", options.max_tokens))
    return questions


def render(report: Report) -> Sequence[str]:
    """Pure. Return the verdict as lines."""
    verdict = report.verdict
    counted = ", ".join(f"{count} {outcome}" for outcome, count in verdict.counts.items())
    lines = [
        f"{report.num_faults} faults; {counted}",
        "longest time that a stream stood still, in seconds: "
        + ", ".join(f"{name} {gap_s:.2f}" for name, gap_s in sorted(report.gaps.items())),
        f"texts compared with known answers: {report.num_known} of {report.num_questions} questions",
    ]
    if report.leaked:
        lines.append(f"workers still hold {report.leaked.requests} requests and {report.leaked.blocks} KV blocks")
    if verdict.first_bad:
        lines.append(f"first of what should not be: {verdict.first_bad}")
    if verdict.counts[Outcome.WRONG]:
        lines.append(
            "rounding may do that: in bfloat16 a text that is computed anew in other steps can go on differently.\n"
            "  try: busway up --set worker.dtype=float32, and this again"
        )
    return [*lines, "", "verdict: " + ("nothing lost, nothing doubled" if report.is_good else "NOT GOOD")]
