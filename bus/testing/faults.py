"""Pure. What may happen to messages on the way to the broker in memory and from it; by default they arrive at once."""

from collections.abc import Sequence
from typing import Literal, Protocol

Action = Literal["publish", "append", "ack", "nak", "term", "in_progress", "put", "deliver", "receive"]
"""What a connection does, or what is done to it: `deliver` hands it a message of a stream, `receive` any other."""
Fate = Literal["kept", "lost", "unanswered"]
"""Of what is to be stored: it is, it never arrives, or it is stored and the acknowledgement never arrives."""

_AT_ONCE = (0.0,)


class Faults(Protocol):
    """The way between connections and the broker. Methods are called in the order of events and never wait."""

    def sends(self, action: Action, connection: str, subject: str, payload: bytes) -> bool:
        """Note what a connection is about to do; False: it does not get out."""

    def arrives(self, action: Action, connection: str, subject: str, payload: bytes) -> None:
        """Note what a connection is about to be handed."""

    def delays(self, receiver: str, subject: str) -> Sequence[float]:
        """Return after how many seconds each copy of a message arrives: none is lost, two are doubled."""

    def stores(self, connection: str, subject: str) -> Fate:
        """Decide over an append."""


class NoFaults:
    """Everything arrives, once and at once."""

    def sends(self, action: Action, connection: str, subject: str, payload: bytes) -> bool:
        """Let it out."""
        return True

    def arrives(self, action: Action, connection: str, subject: str, payload: bytes) -> None:
        """Look away."""

    def delays(self, receiver: str, subject: str) -> Sequence[float]:
        """Return one copy, at once."""
        return _AT_ONCE

    def stores(self, connection: str, subject: str) -> Fate:
        """Keep it."""
        return "kept"
