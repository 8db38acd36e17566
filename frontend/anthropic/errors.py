"""Pure. Errors in Anthropic's words: a type for each status, 529 for what is overloaded."""

import msgspec

from frontend.errors import ErrorAnswer, ErrorBody, status_of

OVERLOADED = 529
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    408: "timeout_error",
    OVERLOADED: "overloaded_error",
}


class ErrorShown(msgspec.Struct, frozen=True):
    """What stands under `error`."""

    type: str
    message: str


class AnthropicEnvelope(msgspec.Struct, frozen=True, tag="error"):
    """An answer that says what went wrong."""

    error: ErrorShown
    request_id: str


def to_anthropic(answer: ErrorAnswer) -> ErrorAnswer:
    """Return the answer with Anthropic's status and type."""
    status = OVERLOADED if answer.status == 503 else answer.status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return ErrorAnswer(status, msgspec.structs.replace(answer.error, type=kind), answer.retry_after_s)


def anthropic_envelope(error: ErrorBody, request_id: str) -> bytes:
    """Render an error whose type is Anthropic's."""
    return msgspec.json.encode(AnthropicEnvelope(ErrorShown(error.type, error.message), request_id))


def stream_error(error: ErrorBody, request_id: str) -> bytes:
    """Render an error that ends a stream, as if it had its status."""
    return anthropic_envelope(to_anthropic(ErrorAnswer(status_of(error.code), error, None)).error, request_id)
