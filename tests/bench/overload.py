"""Twice the load that there is room for: how much of it is still served well, and whom the priorities serve.

A whole system with the mock engine, first at its capacity (as many streams as slots, each asking again at once), then
with requests of all three latency classes that arrive by chance at twice the rate that was served, whatever becomes of
them. An answer counts as good when its text is right and its first token came in time. Without a router and with one.
`python -m tests.bench.overload`; exits with 1 when something is lost, or less than 90 % of the capacity is good.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import anyio
import msgspec
from msgspec.structs import replace

from bus.messages.inference import LATENCY_CLASSES, LatencyClass
from components.chaos.ask import Target, ask
from components.chaos.history import Answer, Question, Verdict, check
from components.chaos.load import running_load
from tests.faults.system import System, make_questions

SLOTS = 16
SETTINGS: Mapping[str, object] = {
    "worker.slots": SLOTS,
    "mock.max_running": SLOTS,
    "frontend.max_queue_s": 1.0,
    "router.max_wait_s": 1.0,
}
MAX_TOKENS = 32
MIX: Mapping[LatencyClass, float] = {"interactive": 0.3, "standard": 0.5, "batch": 0.2}
IN_TIME_S: Mapping[LatencyClass, float] = {"interactive": 1.0, "standard": 3.0, "batch": 30.0}
"""Bounds on the time to the first token: who is taken waits 1 s, and for those of higher classes who come later."""
SETTLE_S = 2.0
"""At the start of the overload, while the queues fill: not counted."""


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """What came of requests at twice the capacity."""

    capacity: float
    """Good answers a second."""
    seconds: float
    answers: dict[LatencyClass, list[Answer]]
    verdict: Verdict

    @property
    def goodput(self) -> float:
        """Good answers a second, counted by when they ended, as a part of the capacity."""
        num_good = sum(is_good(answer, name) for name, answers in self.answers.items() for answer in answers)
        return num_good / self.seconds / self.capacity

    def served_share(self, latency_class: LatencyClass) -> float:
        """Return which part of a class's requests were answered, as long as it may have taken."""
        answers = self.answers[latency_class]
        return sum(answer.status == 200 for answer in answers) / max(1, len(answers))


def is_good(answer: Answer, latency_class: LatencyClass) -> bool:
    """Pure. Whether an answer was of use."""
    is_in_time = answer.first_at - answer.started_at < IN_TIME_S[latency_class]
    return answer.status == 200 and answer.text == answer.question.expected and is_in_time


async def measure_capacity(target: Target, questions: Sequence[Question], seconds: float) -> float:
    """Return the good answers a second when there are exactly as many streams as slots."""
    async with running_load(target, questions, SLOTS) as load:
        await anyio.sleep(SETTLE_S)
        began_at = time.monotonic()
        await anyio.sleep(seconds)
        ended_at = time.monotonic()
    num_good = sum(is_good(a, "standard") for a in load.answers if began_at <= a.ended_at < ended_at)
    return num_good / (ended_at - began_at)


async def measure_overload(
    target: Target, questions: Sequence[Question], seconds: float, *, capacity: float, seed: int = 0
) -> Overload:
    """Ask at twice the capacity, all classes at once."""
    answers: dict[LatencyClass, list[Answer]] = {name: [] for name in LATENCY_CLASSES}
    everything: list[Answer] = []
    rng = Random(seed)
    began_at = time.monotonic() + SETTLE_S
    ended_at = began_at + seconds

    async def ask_one(name: LatencyClass) -> None:
        answer = await ask(replace(target, latency_class=name), rng.choice(questions))
        everything.append(answer)
        if began_at <= answer.ended_at < ended_at:
            answers[name].append(answer)

    async with anyio.create_task_group() as tasks:
        due_at = time.monotonic()
        while due_at < ended_at:
            await anyio.sleep(max(0.0, due_at - time.monotonic()))
            tasks.start_soon(ask_one, rng.choices(list(MIX), list(MIX.values()))[0])
            due_at += rng.expovariate(2 * capacity)
    return Overload(capacity=capacity, seconds=seconds, answers=answers, verdict=check(everything))


def render(result: Overload) -> str:
    """Pure. Return the figures as a table."""
    lines = [
        f"{'class':<14}{'ended/s':>9}{'served':>8}{'good':>8}{'refused':>9}{'TTFT p50':>10}{'p99':>8}{'429 p99':>9}"
    ]
    for name, answers in result.answers.items():
        served = sorted(a.first_at - a.started_at for a in answers if a.status == 200)
        refused = sorted(a.ended_at - a.started_at for a in answers if a.status == 429)
        num_good = sum(is_good(a, name) for a in answers)
        rates = "".join(
            f"{count / result.seconds:>{width}.1f}"
            for count, width in ((len(answers), 9), (len(served), 8), (num_good, 8), (len(refused), 9))
        )
        times = f"{percentile(served, 0.5):>10.2f}{percentile(served, 0.99):>8.2f}{percentile(refused, 0.99):>9.2f}"
        lines.append(f"{name:<14}{rates}{times}")
    lines.append(f"goodput {result.goodput:.0%} of {result.capacity:.1f} requests a second; {result.verdict.counts}")
    return "\n".join(lines)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Pure. Return a value of sorted ones; nan if there is none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def bench(folder: Path, *, routers: int, seconds: float) -> Overload:
    """Start a system, measure it, end it."""
    system = System(folder, SETTINGS)
    try:
        await system.start_nats()
        for name in ["worker-0", *(f"router-{number}" for number in range(routers)), "frontend-0"]:
            system.start(name)
        await system.wait_ready(1)
        target = system.target()
        questions = await make_questions(target, 64, max_tokens=MAX_TOKENS)
        capacity = await measure_capacity(target, questions, seconds / 3)
        return await measure_overload(target, questions, seconds, capacity=capacity)
    finally:
        system.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload, each time (60)")
    parser.add_argument("--routers", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    is_good = True
    for routers in args.routers:
        with tempfile.TemporaryDirectory() as folder:
            result = anyio.run(lambda: bench(Path(folder), routers=routers, seconds=args.seconds))  # noqa: B023
        print(f"{routers} routers\n{render(result)}\n")
        is_good &= result.verdict.is_good and result.goodput >= 0.9
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
