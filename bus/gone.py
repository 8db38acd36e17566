"""I/O. Who lost its connection: the server tells of a killed process within milliseconds, long before it is silent.

`nats/open.conf`, or the account that `bus.authority` makes, has the server show what happens to connections. A server
without that tells nothing: heartbeats and cards remain, and are what counts where this is not there.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from bus.metrics import MALFORMED_MESSAGES
from bus.protocol import Bus, Incoming
from bus.roles import NAME_TAG

CONNECTED = "server.connect"
DISCONNECTED = "server.disconnect"
"""Where `nats/server.conf` puts the server's own events; outside of every namespace, which it does not know."""
GRACE_S = 0.04
"""A process that lives is connected again after so long; if not, the worst is that it is heard of again."""
MAX_WATCHED = 10_000
"""Names whose end is watched at a time."""


class _Client(msgspec.Struct):
    name: str = ""
    """What the client calls itself."""
    tags: list[str] = []
    """What its credentials say of it, with its name: nobody else can leave in that name."""


class _Event(msgspec.Struct):
    client: _Client


_events = msgspec.json.Decoder(_Event)


@contextmanager
def watch_gone(bus: Bus, on_gone: Callable[[str], None], *, grace_s: float = GRACE_S) -> Iterator[None]:
    """Call `on_gone` with the name of each connection that closed and did not come back within `grace_s`.

    Names are those of credentials, or else what processes gave to `open_bus`: ids of workers, routers and frontends,
    and whatever clients chose.
    """
    loop = asyncio.get_running_loop()
    leaving: dict[str, asyncio.TimerHandle] = {}

    def is_gone(name: str) -> None:
        del leaving[name]
        on_gone(name)

    def on_disconnect(incoming: Incoming) -> None:
        name = _read_name(incoming.payload)
        if name and name not in leaving and len(leaving) < MAX_WATCHED:
            leaving[name] = loop.call_later(grace_s, is_gone, name)

    def on_connect(incoming: Incoming) -> None:
        timer = leaving.pop(_read_name(incoming.payload), None)
        if timer is not None:
            timer.cancel()

    subscriptions = [bus.subscribe(DISCONNECTED, on_disconnect), bus.subscribe(CONNECTED, on_connect)]
    try:
        yield
    finally:
        for subscription in subscriptions:
            subscription.unsubscribe()
        for timer in leaving.values():
            timer.cancel()


def _read_name(payload: bytes) -> str:
    """Return the connection's name, empty where there is none."""
    try:
        client = _events.decode(payload).client
    except msgspec.MsgspecError:
        MALFORMED_MESSAGES.labels(family="other").inc()
        return ""
    return next((tag.removeprefix(NAME_TAG) for tag in client.tags if tag.startswith(NAME_TAG)), client.name)
