"""What the simulation found, each as a scenario of its own: few processes, one fault, at the worst moment."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import anyio
import msgspec
import pytest

from bus.config import OffloadConfig, RouterConfig
from components.worker.service import Worker
from tests.history import Asked, Ended, Event, Shown, check_history
from tests.sim.clients import ask
from tests.sim.idle import find_engine
from tests.sim.layout import HOST_BYTES, Layout
from tests.sim.scenario import Scripted, play, question
from tests.sim.stage import FOREVER_S, STALL_S, Process, Stage


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


def num_running(process: Process) -> int:
    """Return how many sequences a worker has in its batch."""
    assert isinstance(process.component, Worker)
    return find_engine(process.component).load().running


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


@pytest.mark.parametrize(("step_s", "ended"), [(2.5, "engine.goes_on"), (FOREVER_S, "engine.died")])
def test_an_answer_goes_on_elsewhere_when_an_engine_makes_no_step(step_s: float, ended: str) -> None:
    """Nobody saw that until the worker gave its engine up, a minute later by default."""
    history: list[Event] = []

    async def script(stage: Stage, _: Scripted) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, stage, Random(0), question(300), history)
            await anyio.sleep(2)
            busy = next(each for each in stage.of_kind("worker") if num_running(each))
            await stage.hang(busy, step_s)
        await anyio.sleep(5)

    trace = play(script, num_routers=1, layout=Layout((("both",), ("both",))))
    assert check_history(history) == []
    shown = [event.at for event in history if isinstance(event, Shown)]
    assert max(later - at for at, later in pairwise(shown)) < 1.6
    assert trace.counts["engine.stuck"] == trace.counts[ended] == 1


def test_a_worker_that_waits_for_the_reader_of_what_nobody_wants_is_not_stuck() -> None:
    """It counted fewer sequences than none, took itself for busy, and its idle engine for dead."""

    async def script(stage: Stage, _: Scripted) -> None:
        async with anyio.create_task_group() as tasks:
            reader = next(each for each in stage.of_kind("worker") if each.number == 1)
            stage.loop.freeze(reader.name)
            leaver = msgspec.structs.replace(question(300), prompt=tuple(range(5, 45)), leaves_after_s=0.5)
            tasks.start_soon(ask, stage, Random(0), leaver, [])
            await anyio.sleep(2 * STALL_S)
            stage.loop.thaw(reader.name)

    layout = Layout((("prefill",), ("decode",)), router=RouterConfig(disaggregate="always"))
    trace = play(script, num_routers=1, layout=layout)
    assert trace.counts["prefill.placed"] == 1
    assert not trace.counts["engine.died"]


def test_an_engine_whose_blocks_are_all_lent_is_not_stuck() -> None:
    """Prompts waited for blocks that a slow reader had, no step was made, and the worker gave its engine up."""

    async def script(stage: Stage, _: Scripted) -> None:
        lender, reader = stage.of_kind("worker")
        stage.loop.freeze(reader.name)
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                prompt = tuple(range(5 + number, 305 + number))
                leaver = msgspec.structs.replace(question(300), name=f"q{number}", prompt=prompt, leaves_after_s=7)
                tasks.start_soon(ask, stage, Random(0), leaver, [])
            await anyio.sleep(STALL_S / 2)
            assert isinstance(lender.component, Worker)
            load = find_engine(lender.component).load()
            assert (load.running, load.waiting > 0) == (0, True)
            await anyio.sleep(2 * STALL_S)
            stage.loop.thaw(reader.name)

    trace = play(script, layout=Layout((("prefill",), ("decode",))))
    assert not trace.counts["engine.died"]


def test_a_batch_does_not_wait_for_the_only_worker_that_prefills_or_decodes() -> None:
    """It waited for as long as anybody else had asked for something in the last minute: half of all workers are kept
    for others, and these were all there were for one part of the work."""
    history: list[Event] = []

    async def script(stage: Stage, _: Scripted) -> None:
        for latency_class in ("interactive", "batch"):
            asked = msgspec.structs.replace(
                question(4), name=latency_class, hints={"latency_class": latency_class}, prompt=tuple(range(5, 45))
            )
            await ask(stage, Random(0), asked, history)

    layout = Layout((("prefill",), ("decode",)), router=RouterConfig(disaggregate="always"))
    trace = play(script, num_routers=1, layout=layout)
    assert check_history(history) == []
    assert history[-1].at - history[0].at < 5
    assert trace.counts["prefill.placed"] >= 2
