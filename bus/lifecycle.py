"""I/O. How a process lives: run until done, drain at the first signal, stop dead at the second."""

import gc
import signal
from collections.abc import AsyncIterator
from typing import Protocol

import anyio
import structlog

GC_THRESHOLDS = (50_000, 5, 5)
"""Connections leave cycles that outlive the young generation: with fewer looks at the older ones, memory grows."""

log = structlog.get_logger()


class Component(Protocol):
    """What `serve` runs."""

    async def run(self) -> None:
        """Work; return when drained after `stop`, or when there is nothing more to do."""

    def stop(self) -> None:
        """Ask `run` to finish what it holds, take nothing new, and return. Calling it twice is calling it once."""


async def serve(component: Component) -> None:
    """Run `component` in the main thread until it returns; raise what it raises.

    The first SIGTERM or SIGINT calls `stop()`, the second cancels `run()`: its clean-up still happens,
    its work does not.
    """
    failure: Exception | None = None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, signals, component, tasks.cancel_scope)
            try:
                await component.run()
            except Exception as error:
                # Kept, not raised: a task group would wrap it, and callers look for its class.
                failure = error
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def spare_living() -> None:
    """Let the collector look no more at what is alive now, and seldom at what comes.

    For a process that has started, and whose requests leave hardly any cycles: looking for them every 700 objects, as
    is the default, costs it up to a fifth of a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _obey(signals: AsyncIterator[signal.Signals], component: Component, scope: anyio.CancelScope) -> None:
    is_stopping = False
    async for number in signals:
        if is_stopping:
            log.warning("process.cancelled", signal=number.name)
            scope.cancel()
            return
        log.info("process.stopping", signal=number.name)
        is_stopping = True
        component.stop()
