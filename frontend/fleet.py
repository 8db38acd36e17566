"""Pure. Which workers live, as one frontend sees them: their cards and how long ago they were heard."""

from bus.messages.fleet import WorkerCard
from bus.subjects import slug

LEFT_PATIENCE_S = 0.75
"""Silence after which a worker without a card is gone: three heartbeats. One that drains keeps talking."""
STALLED_S = 0.9
"""Silence after which a worker's requests go elsewhere: three and a half heartbeats. It may come back."""
AVOIDED_S = 10.0
"""How long a stalled worker is sent nothing, at most: by then the broker has dropped what it had asked for."""
_NEVER = float("-inf")


class _Worker:
    __slots__ = ("block_size", "has_card", "heard_at", "is_common", "model_slug", "num_waiting")

    def __init__(self, heard_at: float) -> None:
        self.has_card = False
        self.heard_at = heard_at
        self.model_slug = ""
        self.block_size = 0
        self.is_common = False
        """It takes whole requests, prefill and decode."""
        self.num_waiting = 0

    @property
    def is_doubted(self) -> bool:
        """It lost its connection, and was not heard since."""
        return self.heard_at == _NEVER


class Fleet:
    """All workers that are there or were until just now. `now` is monotonic, in seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._workers: dict[str, _Worker] = {}
        self._served: set[str] = set()
        """Models that a worker with a card has: every request asks for that."""
        self._stalled: dict[str, tuple[str, float]] = {}
        """Model and moment of workers that fell silent: the broker may hold requests of theirs for more jobs."""
        self._turn = 0

    def arrive(self, worker: str, card: WorkerCard, now: float) -> None:
        """A card is there, new or again."""
        state = self._workers.get(worker)
        if state is None:
            state = self._workers[worker] = _Worker(now)
        state.has_card = True
        state.model_slug = slug(card.model)
        state.block_size = card.block_size
        state.is_common = "both" in card.roles
        self._note_served()

    def leave(self, worker: str) -> None:
        """A card is gone: the worker drains, or is dead."""
        state = self._workers.get(worker)
        if state is not None:
            state.has_card = False
            self._note_served()

    def hear(self, worker: str, now: float) -> None:
        """The worker said something."""
        state = self._workers.get(worker)
        if state is None:
            # A worker that drains has no card any more, but is alive as long as it talks.
            state = self._workers[worker] = _Worker(now)
        state.heard_at = now
        if self._stalled:
            self._stalled.pop(worker, None)

    def report(self, worker: str, num_waiting: int, now: float) -> None:
        """The worker said how many sequences wait in it."""
        self.hear(worker, now)
        self._workers[worker].num_waiting = num_waiting

    def has_waiting(self, now: float) -> bool:
        """Whether anybody waits in a worker that can be heard."""
        return any(state.num_waiting and now - state.heard_at < STALLED_S for state in self._workers.values())

    def doubt(self, worker: str) -> bool:
        """The worker lost its connection: it counts as silent until it is heard again, and no job can reach it.

        Say whether it took jobs until then: one that leaves in order has given up its card before.
        """
        self._stalled.pop(worker, None)
        state = self._workers.get(worker)
        if state is None:
            return False
        state.heard_at = _NEVER
        return state.has_card

    def excuse_silence(self, now: float) -> None:
        """This process could not hear for a while: every worker gets its patience anew."""
        for state in self._workers.values():
            if not state.is_doubted:
                state.heard_at = now

    def find_stalled(self, now: float) -> list[str]:
        """Return the workers that fell silent since the last call, each once in its silence."""
        self._stalled = {name: entry for name, entry in self._stalled.items() if now - entry[1] < AVOIDED_S}
        found = [
            (worker, state.model_slug)
            for worker, state in self._workers.items()
            if now - state.heard_at > STALLED_S and not state.is_doubted and worker not in self._stalled
        ]
        self._stalled |= {worker: (model_slug, now) for worker, model_slug in found}
        return [worker for worker, _ in found]

    def detour(self, model_slug: str) -> str:
        """Return a worker to send a job to by name, in turns, while another one of the model is stalled; else "".

        What is sent to all could reach the stalled one, which has asked for jobs and cannot take them.
        """
        if not self._stalled or all(slug != model_slug for slug, _ in self._stalled.values()):
            return ""
        heard = [
            worker
            for worker, state in self._workers.items()
            if state.has_card
            and state.is_common
            and state.model_slug == model_slug
            and worker not in self._stalled
            and not state.is_doubted
        ]
        self._turn += 1
        return heard[self._turn % len(heard)] if heard else ""

    def bury_silent(self, now: float) -> list[str]:
        """Return the workers that have been silent for too long, and forget them."""
        dead = [
            worker
            for worker, state in self._workers.items()
            if now - state.heard_at > (self._timeout_s if state.has_card else min(self._timeout_s, LEFT_PATIENCE_S))
        ]
        for worker in dead:
            del self._workers[worker]
        if dead:
            self._note_served()
        return dead

    def serves(self, model_slug: str) -> bool:
        """Whether a worker that takes jobs for the model is there."""
        return model_slug in self._served

    def workers_of(self, model_slug: str) -> list[str]:
        """Return the workers that take jobs for the model."""
        return [name for name, state in self._workers.items() if state.has_card and state.model_slug == model_slug]

    def block_sizes(self, model_slug: str) -> list[int]:
        """Return the sizes of KV blocks that the model's workers have, in tokens."""
        workers = self._workers.values()
        return sorted({state.block_size for state in workers if state.has_card and state.model_slug == model_slug})

    def _note_served(self) -> None:
        self._served = {state.model_slug for state in self._workers.values() if state.has_card}

    def __len__(self) -> int:
        return len(self._workers)
