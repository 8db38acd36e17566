"""I/O. Everything that a stream holds at present, read once through a consumer of its own."""

import secrets
from typing import Any

import anyio

from bus import wire
from bus.errors import BusUnavailable, Malformed
from bus.jetstream import API_TIMEOUT_S, JetStream
from bus.protocol import Handler, Incoming
from bus.queue import StandingPull

READ_AHEAD = 1024
"""Messages that the server may send before the first of them was handled."""
FORGET_AFTER_S = 10.0


class Replay:
    """Hands over each message of a subject filter in the order of storing.

    After a reconnect it begins again: a handler may get messages twice, never in a gap.
    """

    def __init__(self, jetstream: JetStream, stream: str, filter_subject: str, handler: Handler) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._filter = filter_subject
        self._handler = handler
        self._consumer = ""
        self._num_left = 0
        self._is_done = False
        self._progress = anyio.Event()
        self.pull = StandingPull(jetstream, stream, self._create, self._receive)
        self.pull.grant(READ_AHEAD)

    async def wait(self) -> None:
        """Return when all was handed over; raise `BusUnavailable` when nothing comes for a while."""
        while not self._is_done:
            self._progress = anyio.Event()
            try:
                with anyio.fail_after(API_TIMEOUT_S):
                    await self._progress.wait()
            except TimeoutError as error:
                raise BusUnavailable(f"stream {self._stream}: no message within {API_TIMEOUT_S} s") from error

    def close(self) -> None:
        if self._consumer:
            self._jetstream.forget_consumer(self._stream, self._consumer)

    async def _create(self) -> str:
        name = f"replay-{secrets.token_hex(8)}"
        reply = await self._jetstream.create_consumer(self._stream, name, _config(name, self._filter))
        self._consumer = reply.name
        self._advance(reply.num_pending)
        return reply.name

    def _receive(self, incoming: Incoming) -> None:
        try:
            position = wire.parse_position(incoming.reply)
        except Malformed:
            return
        self.pull.grant(READ_AHEAD)
        try:
            if not self._is_done:
                self._handler(incoming)
        finally:
            # What is stored meanwhile is not waited for, and what is removed meanwhile never comes.
            self._advance(min(self._num_left - 1, position.pending))

    def _advance(self, num_left: int) -> None:
        self._num_left = num_left
        self._is_done = self._is_done or num_left <= 0
        self._progress.set()


def _config(name: str, filter_subject: str) -> dict[str, Any]:
    return {
        "name": name,
        "filter_subject": filter_subject,
        "ack_policy": "none",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "max_waiting": 64,
        "inactive_threshold": int(FORGET_AFTER_S * 1e9),
        "mem_storage": True,
        "num_replicas": 1,
    }
