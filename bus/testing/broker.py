"""I/O. The broker in memory: what nats-server would hold, shared by the connections of one event loop."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from bus.connection import load_declared
from bus.errors import BadConfig, BusUnavailable
from bus.gone import CONNECTED, DISCONNECTED
from bus.protocol import Incoming
from bus.subjects import Subjects
from bus.testing.bucket import MemoryStore
from bus.testing.connection import MemoryBus, MemorySubscription
from bus.testing.faults import Faults, NoFaults
from bus.testing.matching import matches
from bus.testing.store import MemoryStream
from bus.testing.timers import call_later

MAX_REMEMBERED = 4096
"""Subjects of which the broker remembers who takes them."""

T = TypeVar("T")


class MemoryBroker:
    """Everything that nats-server would hold; connections of one event loop share it.

    It knows time by the loop's clock only, and picks members of a queue group in turn: the same run gives the same
    order. What happens to messages on the way is the business of `faults`. `restart` plays a server that died: memory
    streams and buckets are empty, files are kept.
    """

    def __init__(self, namespace: str = "busway", faults: Faults | None = None) -> None:
        self.subjects = Subjects(namespace)
        self.declared = load_declared(self.subjects)
        self.streams: dict[str, MemoryStream] = {}
        self.buckets: dict[str, MemoryStore] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: Faults = faults or NoFaults()
        self.is_up = True
        self._subscriptions: list[MemorySubscription] = []
        self._receivers: dict[str, list[MemorySubscription]] = {}
        self._streams_of: dict[str, MemoryStream | None] = {}
        self._buses: list[MemoryBus] = []
        self._num_buses = 0
        self._turns: Counter[tuple[str, str]] = Counter()

    @asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator[MemoryBus]:
        """Open a connection."""
        self._num_buses += 1
        bus = MemoryBus(self, name, self._num_buses)
        self._buses.append(bus)
        self._tell(CONNECTED, name)
        try:
            yield bus
        finally:
            # What was published is on its way already: delivery is the receivers' affair.
            self.cut(bus)
            self._buses.remove(bus)
            self._subscriptions = [entry for entry in self._subscriptions if entry.bus is not bus]
            self._receivers.clear()

    async def restart(self) -> None:
        """Lose what was in memory, and let each connection restore itself."""
        self.stop()
        self.forget()
        await self.start()

    def stop(self) -> None:
        """Be away: nothing is delivered, every call that waits fails."""
        self.is_up = False

    def forget(self) -> None:
        """Lose what is in memory, as a server does that died."""
        for stream in self.streams.values():
            if stream.is_memory:
                stream.clear()
        for store in self.buckets.values():
            if store.is_memory:
                store.clear()

    async def start(self) -> None:
        """Be back, with streams and buckets as declared if they were there before."""
        self.is_up = True
        await self._restore([bus for bus in self._buses if not bus.is_cut])

    def find(self, name: str) -> MemoryBus | None:
        """Return the open connection of that name, the last one if there are several."""
        return next((bus for bus in reversed(self._buses) if bus.name == name), None)

    def cut(self, bus: MemoryBus) -> None:
        """Cut one connection off from everything, without a word to it; everybody else is told."""
        if bus.is_cut:
            return
        bus.is_cut = True
        self._receivers.clear()
        for pull in bus.pulls:
            pull.leave()
        self._tell(DISCONNECTED, bus.name)

    async def heal(self, bus: MemoryBus) -> None:
        """Connect again who was cut off, and let it restore itself."""
        bus.is_cut = False
        self._receivers.clear()
        self._tell(CONNECTED, bus.name)
        if self.is_up:
            await self._restore([bus])

    async def _restore(self, buses: Sequence[MemoryBus]) -> None:
        for bus in buses:
            for pull in bus.pulls:
                pull.restore()
        for store in self.buckets.values():
            for watcher in store.watchers:
                if watcher.connection in buses:
                    watcher.read_again()
        async with asyncio.TaskGroup() as tasks:
            for bus in [bus for bus in buses if bus.note_lost()]:
                tasks.create_task(bus.restore(), context=bus.context.copy())

    def _tell(self, subject: str, name: str) -> None:
        """Say who came or went, as nats-server does with the configuration in `nats/`."""
        if self.is_up:
            self.route(Incoming(subject, msgspec.json.encode({"client": {"name": name}})))

    def ensure(self) -> None:
        self._streams_of.clear()
        for declared in self.declared:
            if declared.kind == "stream":
                self.streams.setdefault(declared.short, MemoryStream(declared))
            elif declared.kind == "bucket":
                self.buckets.setdefault(declared.short, MemoryStore(is_memory=declared.is_memory))

    def open_stream(self, short: str) -> MemoryStream:
        """Return a stream; raise `BadConfig` when it is not declared, `BusUnavailable` when it was not made."""
        self._need_declared("stream", short)
        if short not in self.streams:
            raise BusUnavailable(f"stream {short}: stream not found (10059)")
        return self.streams[short]

    def open_bucket(self, short: str) -> MemoryStore:
        """Return a bucket, made when it is not there; raise `BadConfig` when it is not declared."""
        self._need_declared("bucket", short)
        self.ensure()
        return self.buckets[short]

    def find_stream(self, subject: str) -> MemoryStream | None:
        """Return the stream that stores a subject; remembered, for the same few subjects come all the time."""
        if subject in self._streams_of:
            return self._streams_of[subject]
        found = None
        for stream in self.streams.values():
            if any(matches(pattern, subject) for pattern in stream.filters):
                found = stream
                break
        _remember(self._streams_of, subject, found)
        return found

    def add(self, subscription: MemorySubscription) -> None:
        self._subscriptions.append(subscription)
        self._receivers.clear()

    def remove(self, subscription: MemorySubscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._receivers.clear()

    def route(self, incoming: Incoming) -> int:
        """Hand a message to every subscription, and to one of each queue group; return how many got it."""
        receivers = self._receivers.get(incoming.subject)
        if receivers is None:
            receivers = [
                entry
                for entry in self._subscriptions
                if not entry.bus.is_cut and matches(entry.pattern, incoming.subject)
            ]
            _remember(self._receivers, incoming.subject, receivers)
        groups: dict[tuple[str, str], list[MemorySubscription]] = {}
        num_receivers = 0
        for subscription in receivers:
            if subscription.queue:
                groups.setdefault((subscription.pattern, subscription.queue), []).append(subscription)
            else:
                self._send(subscription, incoming)
                num_receivers += 1
        for group, members in groups.items():
            self._send(members[self._turns[group] % len(members)], incoming)
            self._turns[group] += 1
            num_receivers += 1
        return num_receivers

    def _send(self, subscription: MemorySubscription, incoming: Incoming) -> None:
        for delay_s in self.faults.delays(subscription.bus.name, incoming.subject):
            if delay_s > 0:
                call_later(delay_s, subscription.send, incoming)
            else:
                subscription.send(incoming)

    def _need_declared(self, kind: str, short: str) -> None:
        if not any(entry.kind == kind and entry.short == short for entry in self.declared):
            known = ", ".join(entry.short for entry in self.declared if entry.kind == kind)
            raise BadConfig(f"no {kind} {short!r} is declared in nats/; known: {known}")


def _remember(cache: dict[str, T], subject: str, found: T) -> None:
    """Keep an answer for a subject; inboxes come once, and a flood of subjects starts the cache again."""
    if not subject.startswith("_INBOX."):
        if len(cache) >= MAX_REMEMBERED:
            cache.clear()
        cache[subject] = found
