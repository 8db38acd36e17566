"""I/O. NATS micro services (ADR-32) on any bus: found by `nats micro ls`, described by `info`, counted by `stats`.

nats-py has the same in `nats.micro`, on subscriptions that die with its client; these live as long as the bus.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec

from bus.errors import BadConfig
from bus.protocol import Bus, Incoming

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?\Z")
_ERROR = "Nats-Service-Error"
_ERROR_CODE = "Nats-Service-Error-Code"


class Call:
    """One request to an endpoint; it may be answered any number of times, and ends with `finish` or `fail`."""

    __slots__ = ("_bus", "_incoming", "_is_open", "_started_ns", "_stats")

    def __init__(self, bus: Bus, incoming: Incoming, stats: "_Stats") -> None:
        self._bus = bus
        self._incoming = incoming
        self._stats = stats
        self._started_ns = time.perf_counter_ns()
        self._is_open = True

    @property
    def subject(self) -> str:
        return self._incoming.subject

    @property
    def payload(self) -> bytes:
        return self._incoming.payload

    @property
    def headers(self) -> Mapping[str, str] | None:
        return self._incoming.headers

    @property
    def reply(self) -> str:
        """Where answers go; empty when the caller wants none."""
        return self._incoming.reply

    def respond(self, payload: bytes, *, headers: Mapping[str, str] | None = None) -> None:
        """Send one answer; raise `BusUnavailable` when the send buffer is full, `Malformed` for a bad reply subject."""
        if self.reply:
            self._bus.publish(self.reply, payload, headers=headers)

    def fail(self, code: str, description: str, payload: bytes = b"", *, to: str | None = None) -> None:
        """Answer with an error, as NATS clients read it from headers, and end the call.

        `to` stands in for the reply subject; empty, nobody is told. Raises as `respond` does.
        """
        line = " ".join(description.split())
        self._stats.count_error(f"{code}: {line}")
        self.finish()
        subject = self.reply if to is None else to
        if subject:
            self._bus.publish(subject, payload, headers={_ERROR: line, _ERROR_CODE: code})

    def finish(self) -> None:
        """End the call: its duration goes into the statistics. Ending twice is ending once."""
        if self._is_open:
            self._is_open = False
            self._stats.count(time.perf_counter_ns() - self._started_ns)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One subject filter of a service; members of `queue` share its requests. The handler may not block."""

    name: str
    subject: str
    handler: Callable[[Call], None]
    queue: str = "q"
    metadata: dict[str, str] = {}


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What a service says about itself."""

    name: str
    """Letters, digits, '-' and '_'."""
    version: str
    """As in 1.2.3."""
    description: str
    endpoints: Sequence[Endpoint]
    metadata: dict[str, str] = {}


class _Identity(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="io.nats.micro.v1.ping_response"):
    name: str
    id: str
    version: str
    metadata: dict[str, str]


class _EndpointInfo(msgspec.Struct, frozen=True):
    name: str
    subject: str
    queue_group: str
    metadata: dict[str, str]


class _Info(_Identity, frozen=True, kw_only=True, tag="io.nats.micro.v1.info_response"):
    description: str
    endpoints: list[_EndpointInfo]


class _EndpointStats(msgspec.Struct, frozen=True):
    name: str
    subject: str
    queue_group: str
    num_requests: int
    num_errors: int
    last_error: str
    processing_time: int
    average_processing_time: int


class _StatsReply(_Identity, frozen=True, kw_only=True, tag="io.nats.micro.v1.stats_response"):
    started: str
    endpoints: list[_EndpointStats]


class _Stats:
    """Counters of one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.num_requests = 0
        self._num_done = 0
        self._num_errors = 0
        self._last_error = ""
        self._total_ns = 0

    def count(self, duration_ns: int) -> None:
        self._num_done += 1
        self._total_ns += duration_ns

    def count_error(self, error: str) -> None:
        self._num_errors += 1
        self._last_error = error[:500]

    def snapshot(self) -> _EndpointStats:
        return _EndpointStats(
            self.endpoint.name,
            self.endpoint.subject,
            self.endpoint.queue,
            self.num_requests,
            self._num_errors,
            self._last_error,
            self._total_ns,
            self._total_ns // max(1, self._num_done),
        )


@contextmanager
def run_service(bus: Bus, service: Service) -> Iterator[str]:
    """Answer requests and questions about the service while the context is open; return the id of this instance.

    A handler that raises counts as an error and is answered with code 500. Raises `BadConfig` for a name or version
    that NATS tools would not read.
    """
    if not _NAME.match(service.name) or not _VERSION.match(service.version):
        raise BadConfig(f"service {service.name!r} {service.version!r}: not a name and a version such as 1.2.3")
    identity = {"name": service.name, "id": secrets.token_hex(11), "version": service.version}
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    counters = [_Stats(endpoint) for endpoint in service.endpoints]

    def ping() -> _Identity:
        return _Identity(**identity, metadata=service.metadata)

    def info() -> _Info:
        endpoints = [_EndpointInfo(e.name, e.subject, e.queue, e.metadata) for e in service.endpoints]
        return _Info(**identity, metadata=service.metadata, description=service.description, endpoints=endpoints)

    def stats() -> _StatsReply:
        endpoints = [counter.snapshot() for counter in counters]
        return _StatsReply(**identity, metadata=service.metadata, started=started, endpoints=endpoints)

    subscriptions = [
        bus.subscribe(counter.endpoint.subject, _answer_call(bus, counter), queue=counter.endpoint.queue)
        for counter in counters
    ]
    for verb, describe in (("PING", ping), ("INFO", info), ("STATS", stats)):
        subscriptions += [
            bus.subscribe(f"$SRV.{verb}{suffix}", _answer_question(bus, describe))
            for suffix in ("", f".{service.name}", f".{service.name}.{identity['id']}")
        ]
    try:
        yield identity["id"]
    finally:
        for subscription in subscriptions:
            subscription.unsubscribe()


def _answer_call(bus: Bus, stats: _Stats) -> Callable[[Incoming], None]:
    def receive(incoming: Incoming) -> None:
        stats.num_requests += 1
        call = Call(bus, incoming, stats)
        try:
            stats.endpoint.handler(call)
        except Exception as error:
            call.fail("500", f"{type(error).__name__}")
            raise

    return receive


def _answer_question(bus: Bus, describe: Callable[[], _Identity]) -> Callable[[Incoming], None]:
    def receive(incoming: Incoming) -> None:
        if incoming.reply:
            bus.publish(incoming.reply, msgspec.json.encode(describe()))

    return receive
