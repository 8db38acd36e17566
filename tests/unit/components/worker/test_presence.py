"""Presence: an owner is gone after it was missing for long enough while the registry could be seen."""

from components.worker.presence import SILENCE_S, Presence


def test_an_owner_in_the_registry_is_never_gone() -> None:
    presence = Presence()
    presence.arrive("f-1")
    assert presence.find_gone(["f-1"], 0.0) == []
    assert presence.find_gone(["f-1"], 100.0) == []


def test_an_owner_that_left_is_gone_after_the_silence() -> None:
    presence = Presence()
    presence.arrive("f-1")
    presence.leave("f-1")
    assert presence.find_gone(["f-1", "f-2"], 1.0) == []
    assert presence.find_gone(["f-1", "f-2"], 1.0 + SILENCE_S) == ["f-1", "f-2"]


def test_an_owner_that_comes_back_starts_anew() -> None:
    presence = Presence()
    presence.find_gone(["f-1"], 0.0)
    presence.arrive("f-1")
    presence.leave("f-1")
    assert presence.find_gone(["f-1"], SILENCE_S + 1.0) == []


def test_nobody_is_judged_while_the_broker_is_away() -> None:
    presence = Presence()
    presence.find_gone(["f-1"], 0.0)
    presence.suspend()
    assert presence.find_gone(["f-1"], SILENCE_S + 1.0) == []
