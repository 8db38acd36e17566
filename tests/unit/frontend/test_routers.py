"""Requests go to routers only while one lives that takes their model."""

from bus.messages.fleet import RouterCard
from frontend.routers import Routers


def card(*models: str) -> RouterCard:
    return RouterCard(router="r", models=list(models), host="h", pid=1, version="0", started_at=0.0)


def test_without_a_router_nothing_is_taken() -> None:
    routers = Routers()
    assert not routers.take("m")
    routers.leave("unknown")


def test_a_router_takes_the_models_of_its_card_or_all() -> None:
    routers = Routers()
    routers.arrive("r-1", card("m", "n"))
    assert [routers.take(model) for model in ("m", "n", "o")] == [True, True, False]
    routers.arrive("r-2", card())
    assert routers.take("o")
    routers.leave("r-2")
    assert not routers.take("o")
    routers.arrive("r-1", card("o"))
    assert [routers.take(model) for model in ("m", "o")] == [False, True]
