"""I/O. Frontends tell each other what keys used: a key has its limits once, however many frontends there are."""

from contextlib import suppress

import anyio

from bus.codec import encode
from bus.errors import BusUnavailable
from bus.messages.keys import KeyUses
from bus.protocol import Bus, Incoming
from bus.typed import subscribe_typed
from frontend.auth.keys import Keys
from frontend.auth.limits import Account

TELL_S = 0.1
NUM_TURNS = 10
"""Every so many turns, what is in flight is told again: a frontend that came since has not heard of it."""
MAX_USES = 1024
"""Keys in one message."""


async def share_use(bus: Bus, frontend: str, keys: Keys) -> None:
    """Tell what keys with limits use here, and hear what they use elsewhere, until cancelled.

    While the broker is away each frontend counts for itself.
    """

    def hear(message: KeyUses, incoming: Incoming) -> None:
        if message.frontend != frontend and incoming.subject.endswith(f".{message.frontend}"):
            keys.hear(message.frontend, message.uses)

    subscription = subscribe_typed(bus, bus.subjects.spent("*"), KeyUses, hear)
    busy: set[Account] = set()
    turn = 0
    try:
        while True:
            await anyio.sleep(TELL_S)
            turn += 1
            used = keys.take_used()
            if turn % NUM_TURNS == 0:
                used |= busy
            _tell(bus, frontend, list(used))
            busy = {account for account in busy | used if account.num_running}
    finally:
        subscription.unsubscribe()


def _tell(bus: Bus, frontend: str, used: list[Account]) -> None:
    for start in range(0, len(used), MAX_USES):
        accounts = used[start : start + MAX_USES]
        message = KeyUses(frontend, [account.tell() for account in accounts])
        with suppress(BusUnavailable):
            bus.publish(bus.subjects.spent(frontend), encode(message))
