"""Who is to blame for dead workers: what was alone under suspicion twice; several are tried one at a time."""

from typing import Any

from bus.messages.base import pack_u32
from bus.messages.inference import Sampling, Stopping
from frontend.request import Generation, Request
from frontend.suspects import Suspects

GENERATION = Generation(
    model="m", model_slug="m", prompt=pack_u32([1]), sampling=Sampling(), stopping=Stopping(max_tokens=9)
)


def make_request(name: str, *, has_token: bool = False) -> Request:
    output: Any = None
    request = Request(name, GENERATION, output)
    request.is_live = True
    request.dispatched_at = 1.0
    request.last_token_at = 2.0 if has_token else 0.0
    return request


def test_an_accident_makes_nobody_guilty() -> None:
    suspects = Suspects()
    assert suspects.blame([make_request("a"), make_request("b", has_token=True)]) is None
    assert suspects.next_trial() is None
    assert not suspects


def test_what_was_alone_before_its_first_token_in_two_deaths_is_guilty() -> None:
    suspects = Suspects()
    poison, others = make_request("poison"), [make_request(str(number)) for number in range(3)]
    assert suspects.blame([poison, *others]) is None
    for other in others:
        other.last_token_at = 2.0
    assert suspects.blame([poison, *others]) is poison


def test_requests_with_tokens_are_never_under_suspicion() -> None:
    suspects = Suspects()
    steady = make_request("a", has_token=True)
    assert [suspects.blame([steady]) for _ in range(5)] == [None] * 5


def test_several_are_tried_one_at_a_time_and_the_guilty_one_dies_alone() -> None:
    suspects = Suspects()
    poison, other, gone = make_request("poison"), make_request("other"), make_request("gone")
    for _ in range(2):
        assert suspects.blame([other, gone, poison]) is None
    assert all(request.is_held for request in (poison, other, gone))
    assert len(suspects) == 3
    assert suspects.next_trial() is other
    assert suspects.next_trial() is None, "its trial is not over"
    other.last_token_at = 2.0
    gone.is_live = False
    assert suspects.next_trial() is poison
    assert not poison.is_held
    assert suspects.blame([poison, other]) is poison
    poison.is_live = False
    assert suspects.next_trial() is None
    assert not suspects
