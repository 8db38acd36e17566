"""What the simulation found, each as a scenario of its own: few processes, one fault, at the worst moment."""

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import anyio
import pytest

from bus.config import OffloadConfig
from bus.testing import MemoryBroker
from bus.testing.faults import Fate
from tests.history import Asked, Ended, Event, Shown, check_history
from tests.sim.clients import Question, ask
from tests.sim.layout import HOST_BYTES, PLAIN, Layout
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
    layout: Layout = PLAIN,
) -> Trace:
    """Play a scenario with one frontend; processes must end when told to."""
    trace, wall = Trace(loop_time), WallClock()

    async def main() -> None:
        weather = Scripted(trace)
        stage = Stage(Random(0), MemoryBroker("sim", weather), weather, wall, trace, layout=layout)
        with anyio.fail_after(120):
            async with stage.run(num_routers, 1):
                await anyio.sleep(3)
                await script(stage, weather)
        assert not stage.crashes

    simulate(0, trace, wall, main)
    return trace


def question(num_tokens: int, *, is_stream: bool = True, num_choices: int = 1) -> Question:
    return Question("q", (5, 6, 7), num_tokens, is_stream=is_stream, shows_tokens=True, num_choices=num_choices)


def nth(family: str, *numbers: int) -> Callable[[str], bool]:
    """Return a test that is met by these occurrences of a family of subjects, from 1, and by no others."""
    seen = 0

    def is_it(subject: str) -> bool:
        nonlocal seen
        if f".{family}.v1." not in subject:
            return False
        seen += 1
        return seen in numbers

    return is_it


@pytest.mark.parametrize("lost", [(1,), (2,), (1, 2)])
def test_the_last_words_about_a_request_are_asked_for_when_they_are_lost(lost: tuple[int, ...]) -> None:
    """It hung until the worker next spoke to its frontend: only a later number told that one was missing."""
    history: list[Event] = []

    async def script(stage: Stage, weather: Scripted) -> None:
        is_lost = nth("out", *lost)
        weather.loses = lambda receiver, subject: is_lost(subject)
        await ask(stage, Random(0), question(1), history)

    trace = play(script)
    assert check_history(history) == []
    asked, ended = history[0], history[-1]
    assert ended.at - asked.at < 3
    assert "request.retried" not in trace.counts


def test_an_answer_goes_on_when_only_the_acknowledgement_of_its_job_was_lost() -> None:
    """The frontend wrote a second head, a 503, into the stream that the worker had begun."""
    history: list[Event] = []

    async def script(stage: Stage, weather: Scripted) -> None:
        is_unanswered = nth("work", 1)
        weather.fate = lambda subject: "unanswered" if is_unanswered(subject) else "kept"
        await ask(stage, Random(0), question(300), history)

    play(script)
    assert check_history(history) == []
    assert isinstance(history[-1], Ended)
    assert history[-1].how == "finished"


def test_a_choice_that_cannot_be_asked_for_ends_the_stream_of_the_others_in_order() -> None:
    """The refusal of the second choice came as a second head in the middle of the first."""
    history: list[Event] = []

    async def script(stage: Stage, weather: Scripted) -> None:
        is_refused = nth("work", 2)
        weather.fate = lambda subject: "lost" if is_refused(subject) else "kept"
        await ask(stage, Random(0), question(300, num_choices=2), history)

    play(script)
    assert check_history(history, may_fail=["bus_unavailable"]) == []
    assert {type(event) for event in history} == {Asked, Shown, Ended}
    assert [event.why for event in history if isinstance(event, Ended)] == ["bus_unavailable"] * 2


def test_a_worker_whose_tiers_do_not_reach_the_registry_goes_on_without_them() -> None:
    """It crashed: the tier of peers let an unreachable registry end the whole process."""
    history: list[Event] = []

    async def script(stage: Stage, _: Scripted) -> None:
        stage.broker.stop()
        stage.kill(next(stage.of_kind("worker")))
        await anyio.sleep(6)
        await stage.broker.start()
        await ask(stage, Random(0), question(1), history)

    play(script, layout=Layout(offload=OffloadConfig(host_bytes=HOST_BYTES, peers=True)))
    assert check_history(history) == []
