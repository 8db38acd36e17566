"""Pure. The one place where an error becomes an HTTP status and an OpenAI error envelope."""

import math
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from bus.errors import BuswayError, Permanent, Retryable


class TooManyRequests(Retryable):
    """This frontend holds as many requests as it may."""

    code = "too_many_requests"


class Overloaded(Retryable):
    """Requests wait for workers for longer than a new one may."""

    code = "overloaded"


class ShuttingDown(Retryable):
    """This frontend finishes what it has and takes nothing new."""

    code = "shutting_down"


class TooManyConnections(Retryable):
    """This frontend has as many connections as it may."""

    code = "too_many_connections"


class RateLimited(Retryable):
    """The key has used what it may use for now."""

    code = "rate_limit_exceeded"


class InvalidKey(Permanent):
    """No key, one that nobody has, or one that has expired."""

    code = "invalid_api_key"


class ModelForbidden(Permanent):
    """The key is not for this model."""

    code = "model_forbidden"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NoSuchRoute(Permanent):
    """Nothing is served under this path."""

    code = "not_found"


class MethodNotAllowed(Permanent):
    """The path exists, with other methods."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(Permanent):
    """The request body is larger than `frontend.max_body_bytes`."""

    code = "request_too_large"


class HeadersTooLarge(Permanent):
    """The request line and headers are larger than `frontend.max_header_bytes`."""

    code = "headers_too_large"


class UnsupportedMediaType(Permanent):
    """The body is said to be of a type, or in an encoding, that is not taken there."""

    code = "unsupported_media_type"


class BadHttp(Permanent):
    """The bytes are no HTTP request."""

    code = "bad_http_request"


class ClientTooSlow(Permanent):
    """The client sent its request, or read its answer, too slowly."""

    code = "client_too_slow"


class GenerationFailed(BuswayError):
    """A worker gave the request up for good, or a router refused it; `code` is theirs."""

    def __init__(self, message: str, *, code: str, delay_s: float | None = None) -> None:
        """`delay_s` says when another try is worth it, where that is known."""
        super().__init__(message)
        self.worker_code = code
        self.delay_s = delay_s


class ErrorBody(msgspec.Struct, frozen=True):
    """What stands under `error` in an answer."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(NamedTuple):
    """An error as HTTP says it; `retry_after_s` None sends no Retry-After."""

    status: int
    error: ErrorBody
    retry_after_s: int | None


class Envelope(msgspec.Struct, frozen=True):
    """An answer that says what went wrong."""

    error: ErrorBody


_INVALID = "invalid_request_error"
_RATE = "rate_limit_error"
_SERVER = "server_error"

_ANSWERS: dict[str, tuple[int, str]] = {
    "malformed": (400, _INVALID),
    "invalid_request": (400, _INVALID),
    "context_length_exceeded": (400, _INVALID),
    "bad_http_request": (400, _INVALID),
    "invalid_api_key": (401, _INVALID),
    "model_forbidden": (403, _INVALID),
    "model_not_found": (404, _INVALID),
    "not_found": (404, _INVALID),
    "method_not_allowed": (405, _INVALID),
    "client_too_slow": (408, _INVALID),
    "deadline_passed": (408, _INVALID),
    "request_too_large": (413, _INVALID),
    "unsupported_media_type": (415, _INVALID),
    "too_many_requests": (429, _RATE),
    "rate_limit_exceeded": (429, _RATE),
    "queue_full": (429, _RATE),
    "overloaded": (429, _RATE),
    "headers_too_large": (431, _INVALID),
    "no_worker": (503, _SERVER),
    "no_responder": (503, _SERVER),
    "bus_unavailable": (503, _SERVER),
    "engine_busy": (503, _SERVER),
    "shutting_down": (503, _SERVER),
    "too_many_connections": (503, _SERVER),
}
ERROR_STATUSES = {status: HTTPStatus(status).phrase for status in sorted({500, *[s for s, _ in _ANSWERS.values()]})}
"""Every status that an error may have, and what it is called."""
_WITH_RETRY_AFTER = frozenset({429, 503})
_SAFE_TO_SHOW = 2_000
"""Characters of a message that a client is shown."""


def answer_for(error: Exception) -> ErrorAnswer:
    """Translate any error; what is no `BuswayError` is a bug and shows nothing of itself."""
    if not isinstance(error, BuswayError):
        return ErrorAnswer(500, ErrorBody("The server failed on this request.", _SERVER, None, "internal_error"), None)
    code = error.worker_code if isinstance(error, GenerationFailed) else error.code
    status, kind = _ANSWERS.get(code, (503 if isinstance(error, Retryable) else 500, _SERVER))
    delay_s = getattr(error, "delay_s", None)
    retry_after_s = max(1, math.ceil(1.0 if delay_s is None else delay_s)) if status in _WITH_RETRY_AFTER else None
    message = str(error)[:_SAFE_TO_SHOW]
    return ErrorAnswer(status, ErrorBody(message, kind, getattr(error, "param", None), code), retry_after_s)


def status_of(code: str) -> int:
    """Return the status that an error with this code has; 500 for those that have none of their own."""
    return _ANSWERS.get(code, (500, _SERVER))[0]


def envelope(body: ErrorBody) -> bytes:
    """Render `{"error": {...}}`, as OpenAI's clients expect it."""
    return msgspec.json.encode(Envelope(body))
