"""I/O (none that waits). Virtual time: an event loop that jumps to its next timer instead of sleeping."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

_Ready = list[tuple[selectors.SelectorKey, int]]


class Stalled(RuntimeError):
    """Everybody waits, no timer is set, and nothing outside can wake anyone: in real time this would hang."""


class _JumpingSelector(selectors.SelectSelector):
    """Where the loop would wait for the outside world, time passes instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> _Ready:
        if timeout is None:
            raise Stalled("every task waits for another: nothing is left that time could bring")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in the order of their times without waiting; a run that asks nothing random repeats exactly.

    There is no outside: sockets and signals are not looked at, and what waits for a thread or a process waits in vain.
    Time stands still while callbacks run, so everything computed is infinitely fast, and what takes time must sleep.
    """

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)
        # Timers nearer than this count as due together; real clocks are coarser.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the seconds simulated so far."""
        return self._virtual.now


def run_virtual(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work()` in virtual time to its end; raise what it raises, and `Stalled` if it can never end."""
    return anyio.run(work, backend_options={"loop_factory": VirtualLoop})
