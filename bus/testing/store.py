"""I/O. A stream in memory: stored messages, limits and consumers, in the time of the event loop."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from bus.errors import BusUnavailable, QueueFull, StreamMismatch
from bus.protocol import AppendAck, ConsumerSpec
from bus.streams import Declared
from bus.testing.matching import matches, overlaps
from bus.testing.timers import call_later


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One message of a stream."""

    seq: int
    subject: str
    payload: bytes
    headers: Mapping[str, str] | None


class MemoryStream:
    """What `nats/streams/*.json` declares, with the limits that Busway uses."""

    def __init__(self, declared: Declared) -> None:
        settings: Mapping[str, Any] = declared.settings
        self.name = declared.short
        self.is_memory = declared.is_memory
        self.filters: list[str] = settings["subjects"]
        self.is_work_queue = settings.get("retention") == "workqueue"
        self.has_ttl = bool(settings.get("allow_msg_ttl"))
        self._has_rollup = bool(settings.get("allow_rollup_hdrs"))
        self._is_discarding_new = settings.get("discard") == "new"
        self._is_per_subject_new = bool(settings.get("discard_new_per_subject"))
        self._max_msgs = settings.get("max_msgs") or 0
        self._max_per_subject = settings.get("max_msgs_per_subject") or 0
        self._max_bytes = settings.get("max_bytes") or 0
        self._max_age_s = settings.get("max_age", 0) / 1e9
        self._duplicate_window_s = settings.get("duplicate_window", 120e9) / 1e9
        self.messages: dict[int, Stored] = {}
        self.consumers: dict[str, MemoryConsumer] = {}
        self._last_seq = 0
        self._num_bytes = 0
        self._per_subject: Counter[str] = Counter()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._ids: dict[str, int] = {}

    def clear(self) -> None:
        """Forget everything, as a server does that kept it in memory and died."""
        for seq in list(self.messages):
            self.remove(seq)
        for consumer in self.consumers.values():
            consumer.close()
        self.consumers.clear()
        self._ids.clear()
        self._last_seq = 0

    def append(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        msg_id: str = "",
        ttl_s: int | None = None,
    ) -> AppendAck:
        """Store within the limits; raise `QueueFull` or `BusUnavailable` as the server's error would."""
        if msg_id and (seq := self._ids.get(msg_id)) is not None:
            return AppendAck(seq, is_duplicate=True)
        if ttl_s is not None and not self.has_ttl:
            raise BusUnavailable(f"{subject}: per-message TTL is disabled (10166)")
        if headers is not None and headers.get("Nats-Rollup") == "sub":
            self._roll_up(subject)
        self._make_room(subject, len(payload))
        self._last_seq += 1
        seq = self._last_seq
        self.messages[seq] = Stored(seq, subject, payload, headers)
        self._per_subject[subject] += 1
        self._num_bytes += len(payload)
        if msg_id:
            self._ids[msg_id] = seq
            call_later(self._duplicate_window_s, self._ids.pop, msg_id, None)
        age_s = min((limit for limit in (self._max_age_s, ttl_s) if limit), default=0)
        if age_s:
            self._timers[seq] = call_later(age_s, self.remove, seq)
        for consumer in self.consumers.values():
            consumer.offer(seq, subject)
        return AppendAck(seq)

    def remove(self, seq: int) -> None:
        """Forget one message."""
        stored = self.messages.pop(seq, None)
        if stored is None:
            return
        self._num_bytes -= len(stored.payload)
        self._per_subject[stored.subject] -= 1
        if self._per_subject[stored.subject] <= 0:
            del self._per_subject[stored.subject]
        if (timer := self._timers.pop(seq, None)) is not None:
            timer.cancel()
        for consumer in self.consumers.values():
            consumer.forget(seq)

    def find_consumer(self, spec: ConsumerSpec) -> "MemoryConsumer":
        """Return the durable consumer, created when missing; raise `StreamMismatch` where the server would refuse."""
        consumer = self.consumers.get(spec.name)
        if consumer is not None:
            consumer.spec = spec
            return consumer
        if self.is_work_queue:
            for other in self.consumers.values():
                if overlaps(other.spec.filter_subject, spec.filter_subject):
                    raise StreamMismatch(
                        f"consumer {spec.name} of stream {self.name}: "
                        f"filtered consumer not unique on workqueue stream (10100)"
                    )
        consumer = self.consumers[spec.name] = MemoryConsumer(self, spec)
        for seq, stored in self.messages.items():
            consumer.offer(seq, stored.subject)
        return consumer

    def _roll_up(self, subject: str) -> None:
        """Forget all messages of a subject: the next one stands for them."""
        if not self._has_rollup:
            raise BusUnavailable(f"{subject}: rollup not permitted (10123)")
        for seq in [seq for seq, stored in self.messages.items() if stored.subject == subject]:
            self.remove(seq)

    def _make_room(self, subject: str, num_bytes: int) -> None:
        while self._max_per_subject and self._per_subject[subject] >= self._max_per_subject:
            if self._is_discarding_new and self._is_per_subject_new:
                raise QueueFull(f"{subject}: maximum messages per subject exceeded (10077)")
            self.remove(next(seq for seq, stored in self.messages.items() if stored.subject == subject))
        while (self._max_msgs and len(self.messages) >= self._max_msgs) or (
            self._max_bytes and self._num_bytes + num_bytes > self._max_bytes and self.messages
        ):
            if self._is_discarding_new:
                raise QueueFull(f"{subject}: maximum messages or bytes exceeded (10077)")
            self.remove(next(iter(self.messages)))


class Puller(msgspec.Struct, eq=False):
    """Who pulls from a consumer, and how much it still takes."""

    deliver: Callable[[Stored, int], None]
    credit: int = 0


class MemoryConsumer:
    """A durable consumer with explicit acknowledgement."""

    def __init__(self, stream: MemoryStream, spec: ConsumerSpec) -> None:
        self.spec = spec
        self._stream = stream
        self._ready: list[int] = []
        self._held: dict[int, asyncio.TimerHandle] = {}
        self._resting: dict[int, asyncio.TimerHandle] = {}
        self._num_delivered: Counter[int] = Counter()
        self._pullers: list[Puller] = []
        self._next_puller = 0
        self._idle: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._watch_idle()

    def join(self, puller: Puller) -> None:
        self._pullers.append(puller)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def leave(self, puller: Puller) -> None:
        if puller in self._pullers:
            self._pullers.remove(puller)
            if not self._pullers:
                self._watch_idle()

    def close(self) -> None:
        """Stop all clocks."""
        for timer in (*self._held.values(), *self._resting.values()):
            timer.cancel()
        if self._idle is not None:
            self._idle.cancel()
        self._held.clear()
        self._resting.clear()
        self._ready.clear()
        self._is_closed = True

    def offer(self, seq: int, subject: str) -> None:
        """A message was stored."""
        if matches(self.spec.filter_subject, subject):
            heapq.heappush(self._ready, seq)
            self.pump()

    def pump(self) -> None:
        """Deliver while there is a message, a puller with credit, and room for unacknowledged ones."""
        while self._ready and len(self._held) < self.spec.max_ack_pending:
            puller = self._pick()
            if puller is None:
                return
            seq = heapq.heappop(self._ready)
            stored = self._stream.messages.get(seq)
            if stored is None or seq in self._held or self._num_delivered[seq] >= self.spec.max_deliver:
                continue
            self._num_delivered[seq] += 1
            self._hold(seq)
            puller.credit -= 1
            puller.deliver(stored, self._num_delivered[seq])

    def done(self, seq: int) -> None:
        """Ack or term: also for a delivery that was replaced by a later one, as the server takes it."""
        if self._is_closed:
            return
        if (timer := self._held.pop(seq, None) or self._resting.pop(seq, None)) is not None:
            timer.cancel()
        self._num_delivered.pop(seq, None)
        if seq in self._ready:
            self._ready.remove(seq)
            heapq.heapify(self._ready)
        if self._stream.is_work_queue:
            self._stream.remove(seq)
        self.pump()

    def nak(self, seq: int, delay_s: float) -> None:
        if (timer := self._held.pop(seq, None)) is None:
            return
        timer.cancel()
        if delay_s > 0:
            self._resting[seq] = call_later(delay_s, self._return, seq)
        else:
            self._return(seq)

    def in_progress(self, seq: int) -> None:
        if (timer := self._held.pop(seq, None)) is not None:
            timer.cancel()
            self._hold(seq)

    def forget(self, seq: int) -> None:
        """The stream lost the message."""
        if (timer := self._held.pop(seq, None) or self._resting.pop(seq, None)) is not None:
            timer.cancel()
        self._num_delivered.pop(seq, None)

    def _hold(self, seq: int) -> None:
        self._held[seq] = call_later(self.spec.ack_wait_s, self._return, seq)

    def _return(self, seq: int) -> None:
        self._held.pop(seq, None)
        self._resting.pop(seq, None)
        heapq.heappush(self._ready, seq)
        self.pump()

    def _pick(self) -> Puller | None:
        for offset in range(len(self._pullers)):
            index = (self._next_puller + offset) % len(self._pullers)
            if self._pullers[index].credit > 0:
                self._next_puller = index + 1
                return self._pullers[index]
        return None

    def _watch_idle(self) -> None:
        if self.spec.inactive_s is not None and not self._is_closed:
            self._idle = call_later(self.spec.inactive_s, self._expire)

    def _expire(self) -> None:
        self.close()
        self._stream.consumers.pop(self.spec.name, None)
