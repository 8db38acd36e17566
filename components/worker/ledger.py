"""Pure. Which attempts live in this worker, whose they are, and which never need to start."""

from collections import OrderedDict
from typing import Protocol

import msgspec

from bus.messages.inference import GenerateJob
from components.worker.outbox import Outbox

MAX_OVER = 16_384
FORGET_OVER_AFTER_S = 30.0


class Timer(Protocol):
    """What ends an attempt at its deadline."""

    def cancel(self) -> None:
        """Let it not."""


class Attempt(msgspec.Struct, eq=False):
    """One attempt in the engine. Times are monotonic seconds."""

    key: int
    ticket: int
    outbox: Outbox
    offset: int
    """Output position of the next token."""
    request_id: str
    num_prompt_tokens: int
    first_offset: int
    accepted_at: float
    first_token_at: float = 0.0
    expiry: Timer | None = None
    """Ends the attempt at its deadline; cancelled when it ends before."""
    handover_job: GenerateJob | None = None
    """Only the first token is computed here; then this job goes on elsewhere, behind that token."""
    is_prefilled: bool = False
    """It was handed over to this worker."""


class Ledger:
    """Live attempts by engine key and by owner, and tickets that are over.

    A ticket that ended or was cancelled before it came is remembered for `FORGET_OVER_AFTER_S`, the oldest of more than
    `MAX_OVER` are dropped first: forgetting one too early costs work for nobody, never a wrong token.
    """

    def __init__(self) -> None:
        self.live: dict[int, Attempt] = {}
        self._by_owner: dict[str, dict[int, Attempt]] = {}
        self._over: OrderedDict[tuple[str, int], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self.live)

    @property
    def owners(self) -> list[str]:
        """Frontends with live attempts."""
        return list(self._by_owner)

    def is_known(self, owner: str, ticket: int, now: float) -> bool:
        """Say whether the ticket lives here already, or is over."""
        attempts = self._by_owner.get(owner)
        if attempts is not None and ticket in attempts:
            return True
        over_at = self._over.get((owner, ticket))
        return over_at is not None and now - over_at < FORGET_OVER_AFTER_S

    def add(self, attempt: Attempt) -> None:
        self.live[attempt.key] = attempt
        self._by_owner.setdefault(attempt.outbox.frontend, {})[attempt.ticket] = attempt

    def end(self, key: int, now: float) -> Attempt | None:
        """Take an attempt out and remember its ticket as over; return it, None if it was not live."""
        attempt = self.live.pop(key, None)
        if attempt is None:
            return None
        owner = attempt.outbox.frontend
        attempts = self._by_owner[owner]
        del attempts[attempt.ticket]
        if not attempts:
            del self._by_owner[owner]
        self._bury(owner, attempt.ticket, now)
        return attempt

    def cancel(self, owner: str, ticket: int, now: float) -> Attempt | None:
        """End the attempt with this ticket; return it, or None and remember the ticket if it is not here (yet)."""
        attempt = self.find(owner, ticket)
        if attempt is None:
            self._bury(owner, ticket, now)
            return None
        return self.end(attempt.key, now)

    def find(self, owner: str, ticket: int) -> Attempt | None:
        """Return the live attempt with this ticket."""
        return self._by_owner.get(owner, {}).get(ticket)

    def of_owner(self, owner: str) -> list[Attempt]:
        return list(self._by_owner.get(owner, {}).values())

    def _bury(self, owner: str, ticket: int, now: float) -> None:
        over = self._over
        over[owner, ticket] = now
        over.move_to_end((owner, ticket))
        while len(over) > MAX_OVER or now - next(iter(over.values())) >= FORGET_OVER_AFTER_S:
            over.popitem(last=False)
