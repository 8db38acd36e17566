"""I/O. Ends a process whose event loop stands still: nothing inside it could, and outside it looks merely slow."""

import asyncio
import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STUCK_S = 30.0
"""A loop that does not turn for so long will not turn again."""
BEAT_S = 1.0
FAREWELL_S = 8.0
"""Bound on the end of a process that has failed: a thread that is stuck in a step can be waited for in vain."""


@contextmanager
def watchdog(has_failed: Callable[[], bool]) -> Iterator[None]:
    """While the context is open, end the process with the stacks of all threads when the event loop stands still.

    The timer is the C library's: it works also while somebody holds the interpreter's lock. Once `has_failed` says so,
    the process has `FAREWELL_S` left. One of these at a time.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal timer
        is_over = has_failed()
        faulthandler.dump_traceback_later(FAREWELL_S if is_over else STUCK_S, exit=True)
        timer = None if is_over else loop.call_later(BEAT_S, beat)

    beat()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        faulthandler.cancel_dump_traceback_later()
