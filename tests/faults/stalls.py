"""I/O. How long the machine itself holds processes up: what a bar must not hold against those who are tested."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

PULSE_S = 0.01
NUM_HOPS = 4
"""Worker, broker, frontend and client: a token waits for each of them in turn."""


class Stalls:
    """The longest time by which this process was late while it watched."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    @property
    def slack_s(self) -> float:
        """What to add to a bar: next to nothing on a quiet machine."""
        return NUM_HOPS * self.longest_s

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Watch while the context is open."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pulse)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _pulse(self) -> None:
        while True:
            due = anyio.current_time() + PULSE_S
            await anyio.sleep_until(due)
            self.longest_s = max(self.longest_s, anyio.current_time() - due)
