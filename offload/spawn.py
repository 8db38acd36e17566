"""I/O. Starts tasks on behalf of callbacks: there a task group cannot, since no task is running."""

from collections import deque
from collections.abc import Callable, Coroutine

import anyio
from anyio.abc import TaskGroup

Work = Callable[[], Coroutine[object, object, None]]


class Spawner:
    """Tasks in a task group, each begun in the next turn of the event loop."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._queue: deque[Work] = deque()
        self._has_work = anyio.Event()
        tasks.start_soon(self._run)

    def start(self, work: Work) -> None:
        """Have `work` called and awaited in a task of its own."""
        self._queue.append(work)
        self._has_work.set()

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work = anyio.Event()
            while self._queue:
                self._tasks.start_soon(self._queue.popleft())
