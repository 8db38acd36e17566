"""I/O. Dead letters: what could not be handled, kept for a person to look at."""

from bus.codec import encode
from bus.errors import BusUnavailable, BuswayError
from bus.messages.fleet import DeadLetter
from bus.protocol import Bus, Delivery

MAX_PAYLOAD_BYTES = 64 * 1024
"""What a letter keeps of its message; the rest is cut off."""
RETRY_S = 1.0


def dead_letter(subject: str, payload: bytes, code: str, reason: str, *, died_at: float) -> bytes:
    """Return the encoded letter for a message that is given up; `died_at` is in unix seconds."""
    letter = DeadLetter(
        subject=subject,
        code=code,
        reason=reason,
        payload=payload[:MAX_PAYLOAD_BYTES],
        died_at=died_at,
    )
    return encode(letter)


def bury(bus: Bus, stream: str, delivery: Delivery, error: BuswayError, *, died_at: float) -> None:
    """End a message of `stream` (lower case) and send its letter, without waiting; a full bus brings it back later."""
    letter = dead_letter(delivery.subject, delivery.payload, error.code, str(error)[:500], died_at=died_at)
    try:
        bus.publish(bus.subjects.dead(stream), letter)
    except BusUnavailable:
        delivery.nak(RETRY_S)
        return
    delivery.term(error.code)
