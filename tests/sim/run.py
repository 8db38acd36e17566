"""I/O (in memory). One run: a deployment under load and faults, then a calm in which everything must come right."""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from bus.testing import MemoryBroker
from tests.history import Asked, Event
from tests.sim.batches import PATIENCE_S as BATCH_PATIENCE_S
from tests.sim.batches import BatchClient
from tests.sim.clients import ask, draw_question
from tests.sim.layout import draw_layout
from tests.sim.loop import SimLoop
from tests.sim.metered import Meters
from tests.sim.nemesis import Nemesis
from tests.sim.promises import Promises
from tests.sim.stage import DRAIN_S, Stage
from tests.sim.stdlib import WallClock, deterministic, loop_time
from tests.sim.trace import Trace
from tests.sim.weather import Climate, Weather

SETTLE_S = 3.0
"""Before the first request: everybody has heard of everybody."""
FAULTS_S = 60.0
ARRIVALS_PER_S = 3.0
CALM_S = 15.0
"""After the last fault, until everything must be as if nothing had happened."""
PATIENCE_S = 60.0
"""When every request must have ended, after the calm: a slow engine takes 40 s for a long answer, others wait for
it."""
IDLE_S = 12.0
"""When processes must have let go of everything, after the last request: what nobody fetched is kept for 10 s."""
NUM_BATCHES = 3
NUM_LAST = 12
"""Requests after the calm: none of them may fail."""


class Verdict(msgspec.Struct, frozen=True):
    """What came of a run."""

    seed: int
    digest: str
    wrong: list[str]
    counts: dict[str, int]
    num_events: int
    num_requests: int
    simulated_s: float
    cpu_s: float
    lines: list[str]


def run_seed(seed: int, *, faults_s: float = FAULTS_S) -> Verdict:
    """Run one seed to its end."""
    started_s = time.process_time()
    trace = Trace(loop_time)
    wall = WallClock()
    run = _Run(seed, trace, wall, faults_s)
    simulate(seed, trace, wall, run.main)
    return Verdict(
        seed,
        trace.digest,
        run.wrong,
        run.counts,
        trace.num_events,
        sum(isinstance(event, Asked) for event in run.history),
        run.simulated_s,
        time.process_time() - started_s,
        trace.lines,
    )


def simulate(seed: int, trace: Trace, wall: WallClock, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in virtual time, with all chance drawn from `seed` and all logs going into the trace."""
    settings = structlog.get_config()
    structlog.configure(processors=[trace.note_log], cache_logger_on_first_use=False)
    try:
        with deterministic(seed, wall):
            anyio.run(main, backend_options={"loop_factory": SimLoop})
    finally:
        structlog.configure(**settings)


class _Run:
    def __init__(self, seed: int, trace: Trace, wall: WallClock, faults_s: float) -> None:
        self.history: list[Event] = []
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        """What happened until all were told to stop: that happens in every run."""
        self.simulated_s = 0.0
        self._seed = seed
        self._trace = trace
        self._wall = wall
        self._faults_s = faults_s
        self._promises = Promises()

    def _rng(self, purpose: str) -> Random:
        return Random(f"{purpose} {self._seed}")

    async def main(self) -> None:
        weather = Weather(self._rng("weather"), self._trace, loop_time)
        broker = MemoryBroker("sim", weather)
        rng = self._rng("stage")
        stage = Stage(rng, broker, weather, self._wall, self._trace, layout=draw_layout(rng))
        meters = Meters()
        limit_s = SETTLE_S + self._faults_s + CALM_S + 2 * PATIENCE_S + NUM_BATCHES * BATCH_PATIENCE_S + 2 * DRAIN_S
        with anyio.move_on_after(limit_s) as limit:
            async with anyio.create_task_group() as tasks, stage.run(2, 2):
                await anyio.sleep(SETTLE_S)
                batches = [
                    BatchClient(stage, self._rng(f"batch {number}"), f"b{number}", self.history)
                    for number in range(NUM_BATCHES)
                ]
                for number, batch in enumerate(batches):
                    tasks.start_soon(batch.begin, number * self._faults_s / NUM_BATCHES)
                await self._break_things(stage, tasks)
                await self._check_calm(stage, tasks, batches)
                self.counts = {**self._trace.counts, **meters.read()}
        if limit.cancelled_caught:
            self.wrong.append("processes that were told to stop did not")
        self.wrong += stage.crashes
        self.simulated_s = loop_time()

    async def _break_things(self, stage: Stage, tasks: TaskGroup) -> None:
        nemesis = Nemesis(stage, self._rng("nemesis"), tasks)
        rng = self._rng("clients")
        tasks.start_soon(nemesis.run, self._faults_s)
        with anyio.move_on_after(self._faults_s):
            while True:
                await anyio.sleep(rng.expovariate(ARRIVALS_PER_S))
                self._ask(stage, rng, tasks, is_calm=False)

    async def _check_calm(self, stage: Stage, tasks: TaskGroup, batches: Sequence[BatchClient]) -> None:
        """Let everything come right, then hold the system to all that it promises."""
        await anyio.sleep(CALM_S)
        stage.weather.climate = Climate()
        stage.weather.fuses.clear()
        await self._wait_ended("after the faults")
        rng = self._rng("last")
        for _ in range(NUM_LAST):
            self._ask(stage, rng, tasks, is_calm=True)
            await anyio.sleep(0.2)
        await self._wait_ended("in the calm")
        for batch in batches:
            await batch.end()
        self.wrong += self._promises.check(self.history)
        self.wrong += await self._wait_idle(stage)

    def _ask(self, stage: Stage, rng: Random, tasks: TaskGroup, *, is_calm: bool) -> None:
        question = draw_question(rng, f"q{len(self._promises.names)}", may_leave=not is_calm)
        self._promises.note(question, is_calm=is_calm)
        tasks.start_soon(partial(ask, stage, rng, question, self.history))

    async def _wait_idle(self, stage: Stage) -> list[str]:
        """Return what processes still hold after `IDLE_S`; the engine's proof that it lives may be under way before."""
        held = ["nobody looked"]
        with anyio.move_on_after(IDLE_S):
            while held:
                await anyio.sleep(0.5)
                held = stage.find_leftovers()
        return held

    async def _wait_ended(self, when: str) -> None:
        """Wait until all requests ended."""
        with anyio.move_on_after(PATIENCE_S):
            while self._promises.open(self.history):  # noqa: ASYNC110 (nobody signals it)
                await anyio.sleep(0.25)
        if left := self._promises.open(self.history):
            self.wrong.append(f"{PATIENCE_S:g} s {when} these had not ended: {', '.join(left)}")
