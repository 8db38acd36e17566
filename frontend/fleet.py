"""Pure. Which workers live, as one frontend sees them: their cards and how long ago they were heard."""

from bus.messages.fleet import WorkerCard
from bus.subjects import slug

LEFT_PATIENCE_S = 0.75
"""Silence after which a worker without a card is gone: three heartbeats. One that drains keeps talking."""


class _Worker:
    __slots__ = ("block_size", "has_card", "heard_at", "model_slug")

    def __init__(self, heard_at: float) -> None:
        self.has_card = False
        self.heard_at = heard_at
        self.model_slug = ""
        self.block_size = 0


class Fleet:
    """All workers that are there or were until just now. `now` is monotonic, in seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._workers: dict[str, _Worker] = {}

    def arrive(self, worker: str, card: WorkerCard, now: float) -> None:
        """A card is there, new or again."""
        state = self._workers.get(worker)
        if state is None:
            state = self._workers[worker] = _Worker(now)
        state.has_card = True
        state.model_slug = slug(card.model)
        state.block_size = card.block_size

    def leave(self, worker: str) -> None:
        """A card is gone: the worker drains, or is dead."""
        state = self._workers.get(worker)
        if state is not None:
            state.has_card = False

    def hear(self, worker: str, now: float) -> None:
        """The worker said something."""
        state = self._workers.get(worker)
        if state is None:
            # A worker that drains has no card any more, but is alive as long as it talks.
            state = self._workers[worker] = _Worker(now)
        state.heard_at = now

    def doubt(self, worker: str) -> None:
        """The worker lost its connection: it counts as silent until it is heard again."""
        state = self._workers.get(worker)
        if state is not None:
            state.heard_at = float("-inf")

    def excuse_silence(self, now: float) -> None:
        """This process could not hear for a while: every worker gets its patience anew."""
        for state in self._workers.values():
            if state.heard_at != float("-inf"):
                state.heard_at = now

    def bury_silent(self, now: float) -> list[str]:
        """Return the workers that have been silent for too long, and forget them."""
        dead = [
            worker
            for worker, state in self._workers.items()
            if now - state.heard_at > (self._timeout_s if state.has_card else min(self._timeout_s, LEFT_PATIENCE_S))
        ]
        for worker in dead:
            del self._workers[worker]
        return dead

    def serves(self, model_slug: str) -> bool:
        """Whether a worker that takes jobs for the model is there."""
        return any(state.has_card and state.model_slug == model_slug for state in self._workers.values())

    def block_sizes(self, model_slug: str) -> list[int]:
        """Return the sizes of KV blocks that the model's workers have, in tokens."""
        workers = self._workers.values()
        return sorted({state.block_size for state in workers if state.has_card and state.model_slug == model_slug})

    def __len__(self) -> int:
        return len(self._workers)
