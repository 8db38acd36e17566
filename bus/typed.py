"""I/O. Subscriptions that hand over messages instead of bytes."""

from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from bus.codec import codec
from bus.errors import Malformed
from bus.metrics import MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming, Subscription

log = structlog.get_logger()

T = TypeVar("T", bound=msgspec.Struct)


def subscribe_typed(
    bus: Bus, subject: str, message_type: type[T], handler: Callable[[T, Incoming], None], *, queue: str = ""
) -> Subscription:
    """Subscribe to messages of one type; whatever is none is counted, logged once per subscription, and dropped."""
    decode = codec(message_type).decode
    family = bus.subjects.family(subject)
    malformed = MALFORMED_MESSAGES.labels(family=family)
    is_logged = False

    def receive(incoming: Incoming) -> None:
        nonlocal is_logged
        try:
            message = decode(incoming.payload)
        except Malformed as error:
            malformed.inc()
            if not is_logged:
                is_logged = True
                log.warning("message.malformed", family=family, filter=subject, reason=str(error)[:200])
            return
        handler(message, incoming)

    return bus.subscribe(subject, receive, queue=queue)
