"""Pure. Every error that Busway raises on purpose: what a caller may do about it is its class."""

from typing import ClassVar


class BuswayError(Exception):
    """An expected failure; `code` is stable and goes to logs, metrics and HTTP answers."""

    code: ClassVar[str] = "error"


class Retryable(BuswayError):
    """The same thing may succeed elsewhere or after `delay_s`."""

    code = "retryable"

    def __init__(self, message: str, *, delay_s: float = 0.1) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class EngineBusy(Retryable):
    """The worker has no free slot."""

    code = "engine_busy"


class NoWorker(Retryable):
    """No worker serves the model at present."""

    code = "no_worker"


class QueueFull(Retryable):
    """The broker holds as many requests of this lane as it may."""

    code = "queue_full"


class BusUnavailable(Retryable):
    """The broker did not answer in time, or the connection is down."""

    code = "bus_unavailable"


class StreamMissing(BusUnavailable):
    """A stream or bucket is not there, and this process may not make it."""

    code = "stream_missing"


class NoJetStream(BusUnavailable):
    """The broker has no JetStream, and will not have it by waiting."""

    code = "no_jetstream"


class NoResponder(BusUnavailable):
    """Nobody listens on the subject of a request."""

    code = "no_responder"


class TransferFailed(Retryable):
    """KV blocks of a peer could not be read: it is gone or unreachable, or its lease has ended."""

    code = "transfer_failed"


class TransferTimeout(TransferFailed):
    """KV blocks of a peer did not arrive in time."""

    code = "transfer_timeout"


class Permanent(BuswayError):
    """Trying again cannot help: tell the owner, bury the message."""

    code = "permanent"


class Malformed(Permanent):
    """The bytes are no message of the expected type."""

    code = "malformed"


class InvalidRequest(Permanent):
    """The request is well-formed and asks for something impossible; `param` names the field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TransferRefused(Permanent):
    """KV blocks of a peer mean something else here: another model, dtype, layout or transport."""

    code = "transfer_refused"


class UnknownModel(Permanent):
    """No such model is served here."""

    code = "model_not_found"


class PromptTooLong(InvalidRequest):
    """Prompt and requested output do not fit into the model's context."""

    code = "context_length_exceeded"


class DeadlinePassed(Permanent):
    """The request's deadline passed before it was done."""

    code = "deadline_passed"


class Conflict(Permanent):
    """The entry changed since it was read."""

    code = "conflict"


class Fatal(BuswayError):
    """The process cannot go on; it exits with a code other than 0."""

    code = "fatal"


class BadConfig(Fatal):
    """The configuration names an unknown key or holds an impossible value."""

    code = "bad_config"


class AccessDenied(Fatal):
    """The broker does not let this process in, or is not the one that it should be; `hint` is the way on."""

    code = "access_denied"

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class StreamMismatch(Fatal):
    """A stream or bucket of that name exists with settings that Busway cannot work with."""

    code = "stream_mismatch"


class EngineDied(Fatal):
    """The inference engine stopped and cannot be used again."""

    code = "engine_died"
