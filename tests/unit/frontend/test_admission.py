"""A request is refused where it would wait too long, by what those before it wait; single stragglers say nothing."""

from contextlib import suppress
from typing import Any

import pytest

from bus.messages.base import pack_u32
from bus.messages.inference import LatencyClass, Sampling, Stopping
from frontend.admission import MIN_WAITING, Admission
from frontend.errors import Overloaded
from frontend.request import Generation, Request


def waiting(ages: list[float], latency_class: LatencyClass = "standard") -> list[Request]:
    output: Any = None
    generation = Generation(
        model="m",
        model_slug="m",
        prompt=pack_u32([1]),
        sampling=Sampling(),
        stopping=Stopping(max_tokens=9),
        latency_class=latency_class,
    )
    requests = [Request("r", generation, output) for _ in ages]
    for request, age in zip(requests, ages, strict=True):
        request.opened_at = 100.0 - age
    return requests


def come(admission: Admission, count: int) -> None:
    for _ in range(count):
        with suppress(Overloaded):
            admission.check("m", "standard")


def test_thousands_a_second_that_hardly_wait_refuse_nobody() -> None:
    admission = Admission(10.0)
    for turn in range(12):
        admission.update(waiting([0.002] * 6), 100.0 + 0.25 * turn)
        for _ in range(500):
            admission.check("m", "standard")


def test_a_queue_that_takes_too_long_refuses_its_class_only() -> None:
    admission = Admission(10.0)
    admission.update([*waiting([1.0 * age for age in range(13)], "batch"), *waiting([0.1] * 50)], 100.0)
    with pytest.raises(Overloaded, match=r"wait 12\.0 s") as refusal:
        admission.check("m", "batch")
    assert refusal.value.delay_s == 7.0
    admission.check("m", "standard")
    admission.check("another", "batch")


def test_a_few_stragglers_refuse_nobody() -> None:
    admission = Admission(10.0)
    admission.update(waiting([29.0] * (MIN_WAITING - 1)), 100.0)
    admission.check("m", "standard")
    admission.update(waiting([29.0, 29.0, 0.1, 0.2, 0.3]), 100.0)
    admission.check("m", "standard")


def test_when_the_queue_is_short_again_all_are_taken() -> None:
    admission = Admission(1.0)
    admission.update(waiting([5.0] * 9), 100.0)
    admission.update([], 101.0)
    admission.check("m", "standard")


def test_a_queue_that_grows_faster_than_it_drains_refuses_before_anybody_has_waited_so_long() -> None:
    admission = Admission(2.0)
    requests = waiting([-1.7] * 10)
    admission.update(requests, 100.0)
    for turn in range(1, 8):
        come(admission, 4)
        requests = [*requests[2:], *waiting([-1.7] * 4)]  # 8 leave in a second, 16 come
        admission.update(requests, 100.0 + 0.25 * turn)
    with pytest.raises(Overloaded, match="more than 2 s"):
        admission.check("m", "standard")


def test_what_was_taken_since_the_last_look_waits_as_well() -> None:
    admission = Admission(2.0)
    requests = waiting([-1.7] * 10)
    admission.update(requests, 100.0)
    for turn in range(1, 8):
        come(admission, 2)
        requests = [*requests[2:], *waiting([-1.7] * 2)]
        admission.update(requests, 100.0 + 0.25 * turn)
    for _ in range(7):
        admission.check("m", "standard")
    with pytest.raises(Overloaded):
        admission.check("m", "standard")
