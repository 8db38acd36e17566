"""I/O (in memory). Scenarios: a small deployment in fair weather, in which only what a test says goes wrong."""

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import anyio

from bus.testing import MemoryBroker
from bus.testing.faults import Fate
from tests.sim.clients import Question
from tests.sim.layout import PLAIN, Layout
from tests.sim.run import simulate
from tests.sim.stage import Stage
from tests.sim.stdlib import WallClock, loop_time
from tests.sim.trace import Trace
from tests.sim.weather import Weather


class Scripted(Weather):
    """Fair weather, but for what a scenario says."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(Random(0), trace, loop_time)
        self.loses: Callable[[str, str], bool] = lambda receiver, subject: False
        self.fate: Callable[[str], Fate] = lambda subject: "kept"

    def delays(self, receiver: str, subject: str) -> Sequence[float]:
        """Lose what the scenario loses."""
        return () if self.loses(receiver, subject) else super().delays(receiver, subject)

    def stores(self, connection: str, subject: str) -> Fate:
        """Decide as the scenario does."""
        return self.fate(subject)


def play(
    script: Callable[[Stage, Scripted], Awaitable[None]],
    *,
    num_routers: int = 0,
    num_frontends: int = 1,
    layout: Layout = PLAIN,
) -> Trace:
    """Play a scenario; processes must end when told to."""
    trace, wall = Trace(loop_time), WallClock()

    async def main() -> None:
        weather = Scripted(trace)
        stage = Stage(Random(0), MemoryBroker("sim", weather), weather, wall, trace, layout=layout)
        with anyio.fail_after(120):
            async with stage.run(num_routers, num_frontends):
                await anyio.sleep(3)
                await script(stage, weather)
        assert not stage.crashes

    simulate(0, trace, wall, main)
    return trace


def question(num_tokens: int, *, is_stream: bool = True, num_choices: int = 1) -> Question:
    """Return a question that each scenario may ask once."""
    return Question("q", (5, 6, 7), num_tokens, is_stream=is_stream, shows_tokens=True, num_choices=num_choices)
