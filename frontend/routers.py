"""Pure. Which routers live, as one frontend sees them by their cards."""

from bus.messages.fleet import RouterCard


class Routers:
    """All routers, and which models they take requests for."""

    def __init__(self) -> None:
        self._models: dict[str, frozenset[str]] = {}
        """By router; an empty set stands for all models."""

    def arrive(self, router: str, card: RouterCard) -> None:
        """A card is there, new or again."""
        self._models[router] = frozenset(card.models)

    def leave(self, router: str) -> bool:
        """A card is gone, or its router is; say whether it was there."""
        return self._models.pop(router, None) is not None

    def take(self, model: str) -> bool:
        """Whether requests for a model (by name) are to go to routers."""
        return bool(self._models) and any(not models or model in models for models in self._models.values())
