"""I/O (in memory). One run: a deployment under load and faults, then a calm in which everything must come right."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from random import Random

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from bus.config import OffloadConfig
from bus.messages.inference import Role
from bus.testing import MemoryBroker
from components.router.service import Router
from tests.history import Asked, Ended, Event, check_history, check_idle
from tests.sim.batches import PATIENCE_S as BATCH_PATIENCE_S
from tests.sim.batches import BatchClient
from tests.sim.clients import ask, draw_question
from tests.sim.idle import held_by_router
from tests.sim.loop import SimLoop
from tests.sim.metered import Meters
from tests.sim.nemesis import Nemesis
from tests.sim.stage import AGGREGATED, DRAIN_S, HOST_BYTES, Layout, Stage
from tests.sim.stdlib import WallClock, deterministic, loop_time
from tests.sim.trace import Trace
from tests.sim.weather import Climate, Weather

SETTLE_S = 3.0
"""Before the first request: everybody has heard of everybody."""
FAULTS_S = 60.0
ARRIVALS_PER_S = 3.0
CALM_S = 15.0
"""After the last fault, until everything must be as if nothing had happened."""
PATIENCE_S = 30.0
"""When every request must have ended, after the calm."""
IDLE_S = 6.0
"""When processes must have let go of everything, after the last request."""
NUM_BATCHES = 3
NUM_LAST = 12
"""Requests after the calm: none of them may fail."""

REFUSALS = frozenset(
    {
        "bus_unavailable",
        "no_responder",
        "no_worker",
        "overloaded",
        "queue_full",
        "shutting_down",
        "too_many_requests",
    }
)
"""What a client may be told at once, or after a wait, while things are broken; never in the middle of an answer."""

FAILURES = frozenset({"attempts_exhausted", "request_quarantined"})
"""How an answer may end while processes die every few seconds: one request may meet too many of them."""


LAYOUTS: Sequence[tuple[Sequence[tuple[Role, ...]], int]] = (
    (AGGREGATED, 3),
    ((("prefill",), ("decode",)), 2),
    ((("prefill",), ("decode",), ("both",)), 3),
    ((("prefill",), ("decode",)), 4),
)
"""Roles, and how many workers."""
TIERS = (
    OffloadConfig(),
    OffloadConfig(host_bytes=HOST_BYTES),
    OffloadConfig(host_bytes=HOST_BYTES, policy="s3fifo", peers=True),
)


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
        dict(trace.counts),
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
        self.simulated_s = 0.0
        self._seed = seed
        self._trace = trace
        self._wall = wall
        self._faults_s = faults_s
        self._names: list[str] = []
        self._joint: set[str] = set()
        """Choices that are not alone in their answer."""

    def _rng(self, purpose: str) -> Random:
        return Random(f"{purpose} {self._seed}")

    async def main(self) -> None:
        weather = Weather(self._rng("weather"), self._trace, loop_time)
        broker = MemoryBroker("sim", weather)
        rng = self._rng("stage")
        roles, num_workers = rng.choice(LAYOUTS)
        layout = Layout(roles, rng.choice(TIERS))
        stage = Stage(rng, broker, weather, self._wall, self._trace, layout=layout)
        meters = Meters()
        limit_s = SETTLE_S + self._faults_s + CALM_S + 2 * PATIENCE_S + NUM_BATCHES * BATCH_PATIENCE_S + 2 * DRAIN_S
        with anyio.move_on_after(limit_s) as limit:
            async with anyio.create_task_group() as tasks, stage.run(num_workers, 2, 2):
                await anyio.sleep(SETTLE_S)
                batches = [
                    BatchClient(stage, self._rng(f"batch {number}"), f"b{number}", self.history)
                    for number in range(NUM_BATCHES)
                ]
                for number, batch in enumerate(batches):
                    tasks.start_soon(batch.begin, number * self._faults_s / NUM_BATCHES)
                await self._break_things(stage, tasks)
                await self._check_calm(stage, tasks, batches)
        if limit.cancelled_caught:
            self.wrong.append("processes that were told to stop did not")
        self.wrong += stage.crashes
        self._trace.counts.update(meters.read())
        self.simulated_s = loop_time()

    async def _break_things(self, stage: Stage, tasks: TaskGroup) -> None:
        nemesis = Nemesis(stage, self._rng("nemesis"), tasks)
        rng = self._rng("clients")
        tasks.start_soon(nemesis.run, self._faults_s)
        with anyio.move_on_after(self._faults_s):
            while True:
                await anyio.sleep(rng.expovariate(ARRIVALS_PER_S))
                self._ask(stage, rng, tasks, may_leave=True)

    async def _check_calm(self, stage: Stage, tasks: TaskGroup, batches: Sequence[BatchClient]) -> None:
        """Let everything come right, then hold the system to all that it promises."""
        await anyio.sleep(CALM_S)
        stage.weather.climate = Climate()
        stage.weather.fuses.clear()
        num_before = len(self._names)
        await self._wait_ended("after the faults")
        rng = self._rng("last")
        for _ in range(NUM_LAST):
            self._ask(stage, rng, tasks, may_leave=False)
            await anyio.sleep(0.2)
        await self._wait_ended("in the calm")
        for batch in batches:
            await batch.end()
        last = set(self._names[num_before:])
        self._check(lambda name: name in last, may_refuse=(), may_fail=())
        self._check(lambda name: name not in last | self._joint, may_refuse=REFUSALS, may_fail=FAILURES)
        # One choice that is refused ends the others, which may have begun.
        self._check(lambda name: name in self._joint - last, may_refuse=(), may_fail=FAILURES | REFUSALS)
        self.wrong += await self._wait_idle(stage)

    def _check(self, is_meant: Callable[[str], bool], *, may_refuse: Iterable[str], may_fail: Iterable[str]) -> None:
        events = [event for event in self.history if is_meant(event.request)]
        self.wrong += check_history(events, may_refuse=may_refuse, may_fail=may_fail)

    def _ask(self, stage: Stage, rng: Random, tasks: TaskGroup, *, may_leave: bool) -> None:
        question = draw_question(rng, f"q{len(self._names)}", may_leave=may_leave)
        self._names += question.names
        if question.num_choices > 1:
            self._joint.update(question.names)
        tasks.start_soon(partial(ask, stage, rng, question, self.history))

    async def _wait_idle(self, stage: Stage) -> list[str]:
        """Return what processes still hold after `IDLE_S`; the engine's proof that it lives may be under way before."""
        held = ["nobody looked"]
        with anyio.move_on_after(IDLE_S):
            while held:
                await anyio.sleep(0.5)
                held = check_idle(stage.idle_workers())
                for process in stage.of_kind("router"):
                    if isinstance(process.component, Router):
                        held += held_by_router(process.name, process.component)
        return held

    async def _wait_ended(self, when: str) -> None:
        """Wait until all requests ended."""
        with anyio.move_on_after(PATIENCE_S):
            while self._open_requests():  # noqa: ASYNC110 (nobody signals it)
                await anyio.sleep(0.25)
        if left := self._open_requests():
            self.wrong.append(f"{PATIENCE_S:g} s {when} these had not ended: {', '.join(left)}")

    def _open_requests(self) -> list[str]:
        ended = {event.request for event in self.history if isinstance(event, Ended)}
        return [name for name in self._names if name not in ended]
