"""Free slots go to interactive, standard and batch requests in that order, and to each of them now and then."""

from bus.messages.inference import LATENCY_CLASSES
from components.worker.turns import SHARES, STANDS_S, Turns


def test_a_class_is_empty_when_its_grant_stands_for_a_while() -> None:
    turns = Turns()
    assert not turns.has_nobody("interactive", 1.0), "nothing was granted, so nothing is known"
    turns.note_grant("interactive", 2, 1.0)
    assert not turns.has_nobody("interactive", 1.0)
    assert turns.has_nobody("interactive", 1.0 + STANDS_S)
    turns.note_delivery("interactive")
    assert turns.has_nobody("interactive", 1.0 + STANDS_S), "one came, and more could have"
    turns.note_delivery("interactive")
    assert not turns.has_nobody("interactive", 1.0 + STANDS_S), "nobody knows what lies behind the last one"


def test_more_for_a_grant_that_stands_does_not_make_it_new() -> None:
    turns = Turns()
    turns.note_grant("standard", 1, 1.0)
    turns.note_grant("standard", 8, 2.0)
    assert turns.has_nobody("standard", 2.0)
    turns.note_grant("standard", 0, 3.0)
    assert turns.has_nobody("standard", 3.0), "less than stands changes nothing"


def test_each_class_comes_first_now_and_then() -> None:
    turns = Turns()
    firsts = []
    for _ in range(200):
        order = turns.order()
        assert sorted(order) == sorted(LATENCY_CLASSES)
        firsts.append(order[0])
        turns.note_delivery("interactive")
    assert firsts.count("batch") == 200 / SHARES["batch"]
    assert firsts.count("standard") == 200 / SHARES["standard"] - 200 / SHARES["batch"]
    assert turns.order() == list(LATENCY_CLASSES)
