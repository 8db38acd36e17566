"""Whole processes that are broken under load, and the table of what was measured."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from components.chaos.history import Downtime, Question, check
from components.chaos.load import Load, running_load
from components.chaos.slots import Held, find_leaks
from tests.faults.matrix import CASES, read_measured, render
from tests.faults.stalls import Stalls
from tests.faults.system import Settings, System, make_questions

TABLE = Path(__file__).with_name("MATRIX.md")
STREAMS = 48
BUSY_S = 0.02
OpenSystem = Callable[..., Awaitable[System]]
UnderLoad = Callable[..., AbstractAsyncContextManager[Load]]
_measured: dict[str, str] = {}


@pytest.fixture
def stalls() -> Stalls:
    """How late this machine's processes were under the load of the test."""
    return Stalls()


@pytest.fixture
def measured(stalls: Stalls) -> Callable[[str, str], None]:
    """Note what a case of the matrix measured."""

    def note(case: str, text: str) -> None:
        assert case in CASES
        if stalls.longest_s > BUSY_S:
            text += f" (on a machine that was late by {1e3 * stalls.longest_s:.0f} ms)"
        _measured[case] = text
        print(f"case {case}: {CASES[case][0]}: {text}")

    return note


def pytest_sessionfinish() -> None:
    """Write the table, if that is asked for."""
    if os.environ.get("BUSWAY_WRITE_MATRIX") and _measured:
        before = read_measured(TABLE.read_text()) if TABLE.exists() else {}
        TABLE.write_text(render(before | _measured))


@pytest.fixture
def systems() -> Iterator[list[System]]:
    """All systems of a test; none is left behind."""
    opened: list[System] = []
    yield opened
    for system in opened:
        system.close()


@pytest.fixture
def open_system(tmp_path: Path, systems: list[System]) -> OpenSystem:
    """Start a broker, workers, routers and frontends."""

    async def start(
        *,
        workers: int = 3,
        frontends: int = 1,
        routers: int = 0,
        settings: Settings | None = None,
        kind: type[System] = System,
    ) -> System:
        system = kind(tmp_path, settings or {})
        systems.append(system)
        await system.start_nats()
        names = [("worker", workers), ("router", routers), ("frontend", frontends)]
        for role, count in names:
            for number in range(count):
                system.start(f"{role}-{number}")
        await system.wait_ready(workers)
        return system

    return start


@pytest.fixture
def under_load(stalls: Stalls) -> UnderLoad:
    """Keep streams busy with questions whose answers are known; at the end, every answer must be as it should."""

    @asynccontextmanager
    async def load(
        system: System,
        *,
        streams: int = STREAMS,
        max_tokens: int = 64,
        frontend: str = "frontend-0",
        questions: list[Question] | None = None,
        downtimes: list[Downtime] | None = None,
        may_refuse: bool = False,
        deadline_s: float = 0.0,
    ) -> AsyncIterator[Load]:
        target = system.target(frontend, deadline_s=deadline_s)
        questions = questions or await make_questions(target, streams, max_tokens=max_tokens)
        async with running_load(target, questions, streams) as running, stalls.watch():
            yield running
        verdict = check(running.answers, downtimes or [])
        assert verdict.is_good, (verdict, {name: system.log(name)[-1500:] for name in system.processes})
        assert may_refuse or not verdict.counts["refused"], verdict  # type: ignore[index]
        assert await find_leaks(system.config) == Held()

    return load
