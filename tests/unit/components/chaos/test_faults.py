"""Faults are chosen by name and seed, each of them before any comes again."""

import random

import pytest

from bus.errors import BadConfig, NoWorker
from components.chaos.faults import FAULTS, Schedule, choose_faults

RUNNING = [("nats", "nats"), ("worker-0", "worker"), ("worker-1", "worker"), ("frontend-0", "frontend")]


def test_without_names_all_that_fit_are_chosen_but_those_of_frontends() -> None:
    names = {fault.name for fault in choose_faults([], [role for _, role in RUNNING])}
    assert names == {"kill-nats", "freeze-nats", "kill-worker", "freeze-worker", "drain-worker"}


@pytest.mark.parametrize(
    ("name", "complaint"), [("kill-wrker", "there are: kill-worker"), ("kill-router", "no router")]
)
def test_what_cannot_be_done_is_said(name: str, complaint: str) -> None:
    with pytest.raises(BadConfig, match=complaint):
        choose_faults([name], ["nats", "worker"])


def test_a_schedule_is_its_seeds_and_repeats_nothing_before_all_were_there() -> None:
    def picks(seed: int) -> list[tuple[str, str]]:
        schedule = Schedule(choose_faults([], ["nats", "worker"]), random.Random(seed))
        return [(fault.name, name) for fault, name in (schedule.pick(RUNNING) for _ in range(10))]

    assert picks(1) == picks(1)
    assert len({name for name, _ in picks(1)[:5]}) == 5
    assert len({tuple(picks(seed)) for seed in range(10)}) > 1


def test_a_schedule_says_so_when_nobody_is_left() -> None:
    with pytest.raises(NoWorker, match="no router runs that could be disturbed"):
        Schedule([FAULTS["kill-router"], FAULTS["drain-router"]], random.Random(0)).pick(RUNNING)
