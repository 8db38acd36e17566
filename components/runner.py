"""I/O. Runs a user's component: receives, decodes, handles, and decides what becomes of each message."""

import enum
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from bus.codec import Codec
from bus.component import ComponentSpec, Context
from bus.connection import load_declared
from bus.dead import dead_letter
from bus.errors import BadConfig, BusUnavailable, BuswayError, Fatal, Malformed, Permanent, QueueFull, Retryable
from bus.metrics import COMPONENT_MESSAGES, COMPONENT_SECONDS, MALFORMED_MESSAGES
from bus.protocol import Bus, ConsumerSpec, Delivery, Incoming
from bus.subjects import Subjects

ACK_WAIT_S = 5.0
"""After a crash, what the dead process held comes back within this time."""
MAX_QUEUED = 1024
"""Core messages that wait for the handler; newer ones are dropped and counted."""
FAILURE_DELAY_S = 1.0
"""Pause before a message whose handler failed is tried again."""


class Fate(enum.Enum):
    """What becomes of a message; the values are the metric's labels."""

    HANDLED = "handled"
    RETRIED = "retried"
    FAILED = "failed"
    BURIED = "buried"


def decide_fate(error: Exception | None, is_durable: bool, num_delivered: int, max_deliver: int) -> Fate:
    """Decide by what the handler raised: what can be mended is retried, what cannot is buried.

    A `Retryable` is retried for as long as it takes: the fault is outside, and the message is good. Core messages
    cannot be delivered again: they fail.
    """
    if error is None:
        return Fate.HANDLED
    if not is_durable:
        return Fate.FAILED
    if isinstance(error, Retryable):
        return Fate.RETRIED
    if isinstance(error, Permanent) or num_delivered >= max_deliver:
        return Fate.BURIED
    return Fate.RETRIED


class ComponentRunner:
    """One component on one bus: `run` until `stop`. A `Fatal` of the handler ends `run`."""

    def __init__(
        self, spec: ComponentSpec, settings: Mapping[str, Any], bus: Bus, streams: Mapping[str, Sequence[str]]
    ):
        """`streams` maps each stream that may be read to its subjects, without the namespace."""
        self._spec = spec
        self._bus = bus
        self._component = spec.create(settings)
        self._codec = Codec[Any](spec.message_type)
        self._filter = f"{bus.subjects.namespace}.{spec.subject}"
        self._family = bus.subjects.family(self._filter)
        self._stream = find_stream(spec, streams) if spec.durable else ""
        self._log = structlog.get_logger().bind(component=spec.name)
        self._stopping = anyio.Event()
        self._held: set[Delivery] = set()
        self._reported: set[str] = set()
        self._fatal: Fatal | None = None

    def stop(self) -> None:
        """Take nothing new; `run` returns when the messages in hand are done."""
        self._stopping.set()

    async def run(self) -> None:
        """Handle messages until `stop`, then finish those in hand; raise the handler's `Fatal`, if there was one."""
        self._log.info("component.started", subject=self._filter, stream=self._stream, durable=self._spec.durable)
        await (self._run_durable() if self._spec.durable else self._run_core())
        if self._fatal is not None:
            raise self._fatal
        self._log.info("component.stopped")

    async def _run_core(self) -> None:
        send, receive = anyio.create_memory_object_stream[Incoming](MAX_QUEUED)
        dropped = COMPONENT_MESSAGES.labels(self._spec.name, "dropped")

        def enqueue(incoming: Incoming) -> None:
            try:
                send.send_nowait(incoming)
            except anyio.WouldBlock:
                dropped.inc()

        async with anyio.create_task_group() as workers:
            for _ in range(self._spec.in_flight):
                workers.start_soon(self._work, receive.clone())
            receive.close()
            subscription = self._bus.subscribe(self._filter, enqueue)
            await self._stopping.wait()
            subscription.unsubscribe()
            send.close()

    async def _work(self, receive: MemoryObjectReceiveStream[Incoming]) -> None:
        with receive:
            async for incoming in receive:
                await self._handle(incoming, None)

    async def _run_durable(self) -> None:
        consumer = ConsumerSpec(
            stream=self._stream,
            name=self._spec.durable,
            filter_subject=self._filter,
            ack_wait_s=ACK_WAIT_S,
            max_deliver=-1,  # counted here: the server would drop what it gives up without a trace
            max_ack_pending=self._spec.in_flight,
        )

        async def work(delivery: Delivery) -> None:
            self._held.add(delivery)
            try:
                await self._handle(delivery, delivery)
            finally:
                self._held.discard(delivery)
            if not self._stopping.is_set():
                pull.grant(self._spec.in_flight - len(self._held))

        def start(delivery: Delivery) -> None:
            workers.start_soon(work, delivery)

        async with anyio.create_task_group() as ticking:
            ticking.start_soon(self._keep_held)
            async with anyio.create_task_group() as workers, self._bus.pull(consumer, start) as pull:
                pull.grant(self._spec.in_flight)
                await self._stopping.wait()
            ticking.cancel_scope.cancel()

    async def _keep_held(self) -> None:
        """Ask for more time for what is being handled, so that only a dead process loses it to another."""
        while True:
            await anyio.sleep(ACK_WAIT_S / 3)
            for delivery in self._held:
                delivery.in_progress()

    async def _handle(self, received: Incoming | Delivery, delivery: Delivery | None) -> None:
        """Handle one message to its end. Never raises, but when cancelled: then the broker delivers it again."""
        num_delivered = delivery.num_delivered if delivery else 1
        error: Exception | None = None
        started = time.perf_counter()
        try:
            message = self._codec.decode_any(received.payload)
            context = Context(
                self._bus, self._log, received.subject, delivery.stream_seq if delivery else 0, num_delivered
            )
            with anyio.fail_after(self._spec.timeout_s):
                await self._component.handle(message, context)
        except Exception as caught:
            error = caught
        COMPONENT_SECONDS.labels(self._spec.name).observe(time.perf_counter() - started)
        if isinstance(error, Fatal):
            self._fatal = error
            self.stop()
            return
        fate = decide_fate(error, delivery is not None, num_delivered, self._spec.max_deliver)
        if error is not None:
            self._report(error, fate, received.subject, num_delivered)
        if delivery is not None:
            fate = await self._settle(delivery, fate, error)
        COMPONENT_MESSAGES.labels(self._spec.name, fate.value).inc()

    async def _settle(self, delivery: Delivery, fate: Fate, error: Exception | None) -> Fate:
        if fate is Fate.HANDLED:
            delivery.ack()
        elif fate is Fate.RETRIED:
            delivery.nak(error.delay_s if isinstance(error, Retryable) else FAILURE_DELAY_S)
        else:
            try:
                await self._bury(delivery, error)
            except (BusUnavailable, QueueFull) as unavailable:
                self._log.warning("dead_letter.postponed", subject=delivery.subject, reason=str(unavailable))
                delivery.nak(FAILURE_DELAY_S)
                return Fate.RETRIED
            delivery.term(str(error)[:200])
        return fate

    async def _bury(self, delivery: Delivery, error: Exception | None) -> None:
        code = error.code if isinstance(error, BuswayError) else "failed"
        await self._bus.append(
            self._bus.subjects.dead(self._stream.lower()),
            dead_letter(
                delivery.subject, delivery.payload, code, f"{self._spec.name}: {error}"[:1000], died_at=time.time()
            ),
            msg_id=f"{self._spec.durable}-{self._stream}-{delivery.stream_seq}",
        )

    def _report(self, error: Exception, fate: Fate, subject: str, num_delivered: int) -> None:
        """Log a failure: expected ones once per code (the counters go on), bugs each time, with their traceback."""
        facts = {"subject": subject, "fate": fate.value, "num_delivered": num_delivered}
        if isinstance(error, Malformed):
            MALFORMED_MESSAGES.labels(self._family).inc()
        if not isinstance(error, BuswayError):
            self._log.error("message.failed", exc_info=error, **facts)
        elif error.code not in self._reported:
            self._reported.add(error.code)
            self._log.warning("message.refused", code=error.code, reason=str(error), **facts)


def readable_streams(subjects: Subjects) -> dict[str, list[str]]:
    """Return the declared streams that a component may read, with their subjects: not the work queues.

    What one reads there, no worker gets.
    """
    prefix = f"{subjects.namespace}."
    return {
        stream.short: [subject.removeprefix(prefix) for subject in stream.settings["subjects"]]
        for stream in load_declared(subjects)
        if stream.kind == "stream" and stream.settings["retention"] != "workqueue"
    }


def find_stream(spec: ComponentSpec, streams: Mapping[str, Sequence[str]]) -> str:
    """Return the stream that carries all of the component's subject; raise `BadConfig` that names those there are."""
    for name, subjects in streams.items():
        if any(covers(subject, spec.subject) for subject in subjects):
            return name
    there = ", ".join(f"{name} ({', '.join(subjects)})" for name, subjects in sorted(streams.items()))
    raise BadConfig(
        f"component {spec.name}: durable needs a stream that carries {spec.subject!r}; there are {there}. "
        f"Without `durable` it receives at most once, from any subject"
    )


def covers(wide: str, narrow: str) -> bool:
    """Say whether every subject that matches `narrow` matches `wide`; both may hold wildcards."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for index, token in enumerate(wide_tokens):
        if token == ">":
            return len(narrow_tokens) > index
        if index >= len(narrow_tokens) or narrow_tokens[index] == ">":
            return False
        if token not in ("*", narrow_tokens[index]):
            return False
    return len(wide_tokens) == len(narrow_tokens)
