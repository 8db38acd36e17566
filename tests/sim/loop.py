"""I/O (none that waits). Processes in one event loop of virtual time: each can be frozen, and has its own door."""

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, TypeVarTuple, cast

from components.replay.clock import Stalled, VirtualLoop

Args = TypeVarTuple("Args")

PROCESS: ContextVar[str] = ContextVar("process", default="")
"""Name of the process that runs; empty for the broker, the clients, and who breaks things."""


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are walked in the same order in every run."""

    _numbers = count()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._own_number = next(self._numbers)
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._own_number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(VirtualLoop):
    """Runs what is ready in order; what belongs to a frozen process is kept for later.

    Whose a callback is says its context. There is no outside: `create_server` opens a door for clients in this loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.servers: dict[str, MemoryServer] = {}
        """Doors, by process; also those that are closed."""
        self._frozen: dict[str, list[Any]] = {}
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._num_timers = 0
        self.set_task_factory(cast(Any, _number_task))
        self.set_exception_handler(_raise_bugs)

    def freeze(self, process: str) -> None:
        """Run nothing of a process, as SIGSTOP does."""
        self._frozen.setdefault(process, [])

    def thaw(self, process: str) -> None:
        """Run on with all that waited."""
        self._ready.extend(self._frozen.pop(process, ()))

    async def create_server(self, protocol_factory: Any, *_args: Any, **_options: Any) -> Any:
        """Open the door of the process that runs."""
        server = self.servers[PROCESS.get()] = MemoryServer(protocol_factory)
        return server

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a time; timers of the same time run as they were set, which asyncio's own heap does not promise."""
        timer = events.TimerHandle(when, callback, args, self, context)
        self._num_timers += 1
        heapq.heappush(self._timers, (when, self._num_timers, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call after a while; this and `call_soon` are asyncio's own without its checks."""
        return self.call_at(self._virtual.now + delay, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """Call in the next turn."""
        handle = events.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _run_once(self) -> None:
        ready, timers, frozen = self._ready, self._timers, self._frozen
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise Stalled("every task waits for another: nothing is left that time could bring")
            self._virtual.now = max(self._virtual.now, timers[0][0])
        now = self._virtual.now
        # None before its time, as asyncio does within the resolution of its clock: who then looks at the clock waits
        # again, for no time at all, again and again until everything else that is ready has run.
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if frozen and (process := handle._context.get(PROCESS)) in frozen:
                frozen[process].append(handle)
                continue
            # Not by `Handle._run`: what a callback raises ends the run.
            handle._context.run(handle._callback, *handle._args)

    # What asyncio.base_events keeps, and typeshed does not show.
    _ready: deque[Any]
    _stopping: bool


class MemoryServer:
    """A door: makes a protocol for each connection, in the context of the process that opened it."""

    def __init__(self, protocol_factory: Callable[[], Any]) -> None:
        self.context: Context = copy_context()
        self.protocol_factory = protocol_factory
        self.is_open = True
        self.resets: dict[object, Callable[[], None]] = {}
        """By connection: what tells its client that the process died."""

    def close(self) -> None:
        """Take no more connections."""
        self.is_open = False

    def die(self) -> None:
        """The process is gone, and with it all connections."""
        self.is_open = False
        for reset in list(self.resets.values()):
            reset()
        self.resets.clear()

    async def wait_closed(self) -> None:
        """Return at once: connections are their own."""


def _number_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], *, context: Context | None = None
) -> NumberedTask:
    return NumberedTask(coro, loop=loop, context=context)


def _raise_bugs(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback that raises is a bug of a component: the run ends with it."""
    error = context.get("exception")
    raise RuntimeError(f"{context['message']}: {context.get('handle') or context.get('task')}") from error
