"""I/O. The engine as the worker sees it: steps run in a thread of their own, results arrive in the event loop."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import msgspec
from anyio import to_thread

from bus.errors import EngineDied, InvalidRequest
from bus.messages.kv import KvEvent
from components.engines import EngineLoad, EngineRequest, EngineSpec, Step
from components.engines.exchange import BlockMemory, Fill, Held, Note, ignore_note
from components.engines.grammar import Grammars, GrammarState
from components.engines.torch.engine import TorchEngine, check_request
from components.engines.torch.rows import without_rows

MAX_UNDELIVERED = 4
"""Steps that the thread may be ahead of the event loop; it waits when the loop is so far behind."""


class _Prepared(msgspec.Struct, frozen=True):
    """A request with its grammar, or with what is wrong with that."""

    request: EngineRequest
    grammar: GrammarState | None
    error: str


_Item = EngineRequest | _Prepared | int | Callable[[], None]
"""What the inbox holds; a number is a key to abort, a function is called between two steps."""


class _Report(msgspec.Struct, frozen=True):
    """What the thread tells the event loop at a time."""

    taken: list[_Item]
    """The part of the inbox that was applied before the step."""
    notes: list[Note]
    step: Step | None
    load: EngineLoad
    events: list[KvEvent]


class TorchDriver:
    """Implements `components.engines.Engine` over a `TorchEngine`.

    Requests and aborts go through an inbox that the thread empties between steps; the worker's slots bound it. Each
    step comes back by one call into the event loop. With nothing to do the thread sleeps until the inbox wakes it.
    """

    def __init__(self, engine: TorchEngine, grammars: Grammars | None = None) -> None:
        """Without `grammars`, requests that have one are refused."""
        self._engine = engine
        self._grammars = grammars
        self._preparing: dict[int, EngineRequest] = {}
        """By key: requests whose grammars are made in a thread, which takes a second or more the first time."""
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._load = engine.load()
        self._events: list[KvEvent] = []
        self._new: dict[int, int] = {}  # key and length of requests that `_load` does not count yet
        self._aborted: set[int] = set()  # keys that the thread may still report
        self._inbox: deque[_Item] = deque()
        self._wake = threading.Event()
        self._room = threading.Semaphore(MAX_UNDELIVERED)
        self._is_stopping = False
        self._failure: Exception | None = None

    @property
    def spec(self) -> EngineSpec:
        """Return the fixed facts of the engine."""
        return self._engine.spec

    @property
    def memory(self) -> BlockMemory:
        """Where the blocks are."""
        return self._engine.memory

    def submit(self, request: EngineRequest) -> None:
        """Queue a sequence; raise `PromptTooLong` or `InvalidRequest` for what cannot be computed."""
        check_request(request, self.spec)
        if request.grammar and self._grammars is None:
            raise InvalidRequest("this engine enforces no grammars", param="grammar")
        self._new[request.key] = len(request.prompt) + len(request.output)
        if request.grammar:
            self._preparing[request.key] = request
            self._preparer.submit(self._prepare, request)
        else:
            self._inbox.append(request)
            self._wake.set()

    def abort(self, key: int) -> None:
        """Forget a sequence in any state, as `components.engines.Engine` says."""
        self._new.pop(key, None)
        if self._preparing.pop(key, None) is not None:
            return
        self._aborted.add(key)
        self._inbox.append(key)
        self._wake.set()

    def filled(self, key: int, num_blocks: int) -> None:
        """Answer a `Fill`."""
        self._call(partial(self._engine.scheduler.filled, key, num_blocks))

    def release(self, key: int) -> None:
        """Keep the blocks of a sequence with `hold` no longer."""
        self._call(partial(self._engine.scheduler.release, key))

    def pin(self, token: int, hashes: Sequence[int]) -> None:
        """Ask where these blocks are, and keep them."""
        self._call(partial(self._engine.scheduler.leases.pin, token, hashes))

    def unpin(self, token: int) -> None:
        """Keep what was pinned no longer."""
        self._call(partial(self._engine.scheduler.leases.unpin, token))

    def load(self) -> EngineLoad:
        """Return the load after the last step, with what was submitted since."""
        return msgspec.structs.replace(
            self._load,
            waiting=self._load.waiting + len(self._new),
            prefill_tokens=self._load.prefill_tokens + sum(self._new.values()),
        )

    def take_events(self) -> list[KvEvent]:
        """Return the block events since the last call, in order; to be called after each step."""
        events, self._events = self._events, []
        return events

    async def run(self, on_step: Callable[[Step], None], on_note: Callable[[Note], None] = ignore_note) -> None:
        """Step while there is work, until cancelled; runs once. Raises `EngineDied` when a step failed.

        A cancel waits for the step that is being computed. What `on_step` or `on_note` raises is raised here.
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # else what is called back would not know that it is in a loop
        over = anyio.Event()

        def deliver(report: _Report) -> None:
            self._room.release()
            try:
                self._receive(report, on_step, on_note)
            except Exception as error:  # raised by run, not lost in a callback
                self._failure = error
                over.set()

        def work() -> None:
            try:
                self._work(lambda report: loop.call_soon_threadsafe(deliver, report, context=context))
            except Exception as error:  # raised by run, not lost in a thread
                self._failure = EngineDied(f"{type(error).__name__}: {error}")
                self._failure.__cause__ = error
                loop.call_soon_threadsafe(over.set, context=context)

        thread = threading.Thread(target=work, name="engine", daemon=True)
        thread.start()
        try:
            await over.wait()
        finally:
            self._is_stopping = True
            self._wake.set()
            self._room.release()
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(thread.join)
            self._preparer.shutdown(wait=False, cancel_futures=True)
        if self._failure is not None:
            raise self._failure

    def _prepare(self, request: EngineRequest) -> None:
        """Make the grammar of a request in a thread, and queue it unless it was aborted meanwhile."""
        assert self._grammars is not None
        try:
            prepared = _Prepared(request, self._grammars.open(request), "")
        except Exception as error:  # told to the request's owner: a thread's error is nobody's
            prepared = _Prepared(request, None, str(error) or type(error).__name__)
        if self._preparing.pop(request.key, None) is not None:
            self._inbox.append(prepared)
            self._wake.set()

    def _call(self, change: Callable[[], None]) -> None:
        self._inbox.append(change)
        self._wake.set()

    def _receive(self, report: _Report, on_step: Callable[[Step], None], on_note: Callable[[Note], None]) -> None:
        """Take a report in the event loop; nothing in it may be of a sequence that was aborted meanwhile."""
        for note in report.notes:
            if not isinstance(note, Fill | Held) or note.key not in self._aborted:
                on_note(note)
            elif isinstance(note, Fill):
                self.filled(note.key, 0)
        step = report.step
        if step is not None and self._aborted:
            ended = [each for each in step.ended if each.key not in self._aborted]
            step = msgspec.structs.replace(
                without_rows(step, self._aborted),
                ended=ended,
                prompts=[each for each in step.prompts if each.key not in self._aborted],
                vectors=[each for each in step.vectors if each.key not in self._aborted],
                cached=[(key, count) for key, count in step.cached if key not in self._aborted],
            )
        for item in report.taken:
            if isinstance(item, int):
                self._aborted.discard(item)
            elif isinstance(item, EngineRequest):
                self._new.pop(item.key, None)
            elif isinstance(item, _Prepared):
                self._new.pop(item.request.key, None)
        self._load = report.load
        self._events += report.events
        if step is not None:
            on_step(step)

    def _work(self, send: Callable[[_Report], object]) -> None:
        """Step in the thread until `run` ends."""
        while not self._is_stopping:
            taken = self._take_inbox()
            plan = self._engine.schedule() if self._engine.has_work else None
            notes = self._engine.take_notes()
            if notes:  # who fills need not wait for the step
                self._report(send, taken, notes, None)
                taken = []
            if plan is not None and self._engine.can_compute(plan):
                step = self._engine.compute(plan)
                self._report(send, taken, self._engine.take_notes(), step)
            elif taken:
                self._report(send, taken, [], None)
            elif not notes:
                self._wake.wait()
                self._wake.clear()

    def _take_inbox(self) -> list[_Item]:
        taken: list[_Item] = []
        while self._inbox:
            item = self._inbox.popleft()
            taken.append(item)
            if isinstance(item, int):
                self._engine.abort(item)
            elif callable(item):
                item()
            elif isinstance(item, _Prepared):
                if item.grammar is None:
                    self._engine.refuse(item.request, item.error)
                else:
                    self._engine.add(item.request, item.grammar)
            else:
                self._engine.add(item)
        return taken

    def _report(
        self, send: Callable[[_Report], object], taken: list[_Item], notes: list[Note], step: Step | None
    ) -> None:
        self._room.acquire()
        events = [] if notes and step is None else self._engine.pool.take_events()
        send(_Report(taken, notes, step, self._engine.load(), events))
