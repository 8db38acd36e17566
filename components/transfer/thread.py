"""I/O. A thread of its own for a library that may be called from one thread only: it polls, and moves jobs on."""

import asyncio
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import anyio
import structlog
from anyio import to_thread

T = TypeVar("T")
Steps = Generator[bool, None, T]
"""A job: what it yields says whether it got on (True) or waits for something outside (False)."""

_WAIT_S = 0.0001
"""Between two looks at jobs that all wait."""

log = structlog.get_logger()


class Job(Generic[T]):
    """A job and what became of it. `is_stopped`: who asked for it does not want it any more, so it should end soon."""

    def __init__(self, make_steps: "Callable[[Job[T]], Steps[T]]") -> None:
        self.is_stopped = False
        self.steps = make_steps(self)
        self.result: T | None = None
        self.error: BaseException | None = None
        self.over = anyio.Event()


class JobThread:
    """Runs jobs until `close`. Their results reach the event loop after the round in which they ended."""

    def __init__(self, name: str, poll: Callable[[], float]) -> None:
        """`poll` is called once a round, and says for how long at most to sleep when there is no job."""
        self._poll = poll
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._jobs: list[Job[Any]] = []
        self._ended: list[Job[Any]] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, make_steps: Callable[[Job[T]], Steps[T]]) -> T:
        """Run a job and return its result. A cancel stops the job, and is over when the job is."""
        job = Job(make_steps)
        self._inbox.put(job)
        if self._failure is not None:  # looked at last: a thread that dies now finds the job in its inbox
            raise self._failure
        try:
            await job.over.wait()
        except anyio.get_cancelled_exc_class():
            job.is_stopped = True
            with anyio.CancelScope(shield=True):
                await job.over.wait()
            raise
        if job.error is not None:
            raise job.error
        result: T = job.result  # type: ignore[assignment]
        return result

    def post(self, make_steps: Callable[[Job[None]], Steps[None]]) -> None:
        """Run a job that nobody waits for; it tells nobody how it went."""
        self._inbox.put(Job(make_steps))

    def wake(self) -> None:
        """End a sleep."""
        self.post(lambda _: _nothing())

    def call_in_loop(self, call: Callable[..., object], *args: object) -> None:
        """Call something in the event loop, from the thread."""
        self._loop.call_soon_threadsafe(call, *args)

    def interrupt(self, current: Job[Any], error: Exception) -> None:
        """End all jobs but the one that calls this, with an error; to be called in the thread."""
        for job in self._jobs:
            if job is not current and job not in self._ended:
                self._step(job, lambda job=job: job.steps.throw(error))  # type: ignore[misc]

    async def close(self) -> None:
        """End the thread after the jobs that it has; shield this."""
        self._inbox.put(None)
        await to_thread.run_sync(self._thread.join)

    def _work(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._failure = error
            self._take(0.0)
            for job in self._jobs:
                job.error = error
                self.call_in_loop(job.over.set)
            raise

    def _run(self) -> None:
        sleep_s = 0.0
        is_open = True
        while is_open or self._jobs:
            is_open = self._take(sleep_s) and is_open
            got_on = False
            for job in self._jobs:
                if job not in self._ended:
                    got_on |= self._step(job, lambda job=job: next(job.steps))  # type: ignore[misc]
            poll_s = self._poll()
            if self._ended:
                self._jobs = [job for job in self._jobs if job not in self._ended]
                for job in self._ended:
                    self.call_in_loop(job.over.set)
                self._ended = []
            sleep_s = 0.0 if got_on else _WAIT_S if self._jobs else poll_s

    def _take(self, sleep_s: float) -> bool:
        """Take what is in the inbox, after at most `sleep_s`; return False at its end."""
        try:
            job = self._inbox.get(timeout=sleep_s) if sleep_s else self._inbox.get_nowait()
            while job is not None:
                self._jobs.append(job)
                job = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _step(self, job: Job[Any], step: Callable[[], bool]) -> bool:
        """Move a job on; return whether it got on. What it raises is kept for who waits for it."""
        try:
            return step()
        except StopIteration as end:
            job.result = end.value
        except BaseException as error:
            job.error = error
        self._ended.append(job)
        return True


def _nothing() -> Steps[None]:
    return
    yield True
