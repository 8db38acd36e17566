"""Pure. Responses that are kept for later turns, and what frontends ask each other about them."""

from typing import Literal

from bus.messages.base import Fact

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class StoredResponse(Fact, frozen=True, kw_only=True, tag="stored_response"):
    """A response as any frontend can show it, and continue the conversation from it."""

    tenant: str
    frontend: str
    """Who makes it, or made it."""
    status: ResponseStatus
    previous: str = ""
    """The response that this one continues; empty when it began the conversation."""
    input: bytes
    """JSON list of the items that the client sent."""
    response: bytes
    """The response as JSON, as clients see it."""


class ResponseQuery(Fact, frozen=True, kw_only=True, tag="response_query"):
    """A question to the frontend that makes a response: is it at work on it? What it stores is stored by the answer."""

    response: str
    cancel: bool = False
    """Stop the work on it first."""
    after: int | None = None
    """Instead of an answer, send its events after this number to the reply subject, and an empty message at the end."""


class ResponseState(Fact, frozen=True, kw_only=True, tag="response_state"):
    """The answer to a `ResponseQuery`."""

    is_running: bool
