"""I/O. The responses that a frontend is at work on, and what frontends ask each other about them.

A response's id tells who makes it. Whoever meets one that is not there yet, or not done, asks that frontend on
`response.v1.{frontend}`: one that is about to be stored is waited for; one whose maker is gone has failed.
"""

from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.codec import codec, encode
from bus.errors import BusUnavailable, BuswayError, Malformed, NoResponder
from bus.messages.responses import ResponseQuery, ResponseState
from bus.protocol import Bus, Incoming
from bus.typed import subscribe_typed
from frontend.errors import ShuttingDown, TooManyRequests
from frontend.responses.answers import owner_of
from frontend.responses.tape import Listener, Tape

ASK_TIMEOUT_S = 2.0
SAVE_TIMEOUT_S = 5.0
"""How long the work on a response may take to end and to be stored after it was told to stop."""
MAX_DETACHED = 1_000
"""Responses that are made in the background at one time."""
MAX_ENDED_BYTES = 16 * 2**20
"""Events of responses that are made: the last ones are kept for who lost a stream and asks for the rest of it."""
_MAX_QUERIES = 1_000

_decode_state = codec(ResponseState).decode

log = structlog.get_logger()


class Work:
    """One response in the making."""

    __slots__ = ("done", "is_detached", "is_saving", "response", "scope", "tape")

    def __init__(self, response: str, *, is_detached: bool, tape: Tape | None) -> None:
        self.response = response
        self.tape = tape
        """Its events, where they are kept."""
        self.is_detached = is_detached
        self.is_saving = False
        """Nothing is left but to store it."""
        self.scope = anyio.CancelScope()
        """Around the work of a detached one."""
        self.done = anyio.Event()


class Works:
    """All of one frontend."""

    def __init__(self, bus: Bus, frontend: str) -> None:
        self._bus = bus
        self.frontend = frontend
        self._works: dict[str, Work] = {}
        self._ended: dict[str, Tape] = {}
        """Tapes of responses that are made, the oldest first."""
        self._num_ended_bytes = 0
        self._num_detached = 0
        self._num_queries = 0
        self._tasks: TaskGroup | None = None

    async def run(self, stopping: anyio.Event) -> None:
        """Answer questions until `stopping`; return when all detached work has ended."""
        async with anyio.create_task_group() as detached:
            self._tasks = detached
            async with anyio.create_task_group() as answering:

                def receive(query: ResponseQuery, incoming: Incoming) -> None:
                    if query.after is not None:
                        self._listen_here(query.response, query.after, lambda event: self._tell(incoming.reply, event))
                    elif self._num_queries < _MAX_QUERIES:
                        self._num_queries += 1
                        answering.start_soon(self._answer, query, incoming.reply)

                subject = self._bus.subjects.response(self.frontend)
                subscription = subscribe_typed(self._bus, subject, ResponseQuery, receive)
                try:
                    await stopping.wait()
                    for work in list(self._works.values()):
                        await work.done.wait()
                finally:
                    self._tasks = None
                    subscription.unsubscribe()
                    answering.cancel_scope.cancel()

    def begin(self, response: str, *, is_detached: bool = False, tape: Tape | None = None) -> Work:
        """Be at work on a response until `end`; raise `TooManyRequests` for one too many in the background.

        `tape` takes its events, for `listen`.
        """
        if is_detached:
            if self._num_detached >= MAX_DETACHED:
                raise TooManyRequests("Too many responses are made in the background here; try again soon.")
            self._num_detached += 1
        work = self._works[response] = Work(response, is_detached=is_detached, tape=tape)
        return work

    def end(self, work: Work) -> None:
        """Be done with a response: it is stored, or will never be."""
        del self._works[work.response]
        if work.tape is not None:
            work.tape.end()
            if work.tape.num_bytes:
                self._keep(work.response, work.tape)
        self._num_detached -= work.is_detached
        work.done.set()

    def _keep(self, response: str, tape: Tape) -> None:
        self._ended[response] = tape
        self._num_ended_bytes += tape.num_bytes
        while self._num_ended_bytes > MAX_ENDED_BYTES:
            self._num_ended_bytes -= self._ended.pop(next(iter(self._ended))).num_bytes

    def detach(self, work: Work, function: Callable[[], Awaitable[None]]) -> None:
        """Run what nobody waits for, and end the work after it; raise `ShuttingDown` when this frontend stops."""
        if self._tasks is None:
            raise ShuttingDown("This frontend is shutting down.")
        self._tasks.start_soon(self._run_detached, work, function)

    async def ask(self, response: str, *, cancel: bool = False) -> bool | None:
        """Ask its maker whether it is at work on a response, after what it was about to store is stored.

        None says that the maker did not answer in time. With `cancel` the work ends first.
        """
        owner = owner_of(response)
        if owner is None:
            return False
        if owner == self.frontend:
            return await self._settle(response, cancel=cancel)
        query = encode(ResponseQuery(response=response, cancel=cancel))
        timeout_s = ASK_TIMEOUT_S + (SAVE_TIMEOUT_S if cancel else 0.0)
        try:
            reply = await self._bus.request(self._bus.subjects.response(owner), query, timeout_s=timeout_s)
            state: ResponseState = _decode_state(reply.payload)
            return state.is_running
        except NoResponder:
            return False
        except (BusUnavailable, Malformed) as error:
            log.warning("response.unknown_state", response=response, reason=str(error)[:200])
            return None

    def listen(self, response: str, after: int, listener: Listener) -> Callable[[], None]:
        """Hear the events of a response after number `after`, whoever makes it; return what ends that.

        One whose events are not kept, or no more, has its end at once; a maker that dies says none.
        """
        owner = owner_of(response)
        if owner is None or owner == self.frontend:
            return self._listen_here(response, after, listener)
        inbox = self._bus.new_inbox()
        subscription = self._bus.subscribe(inbox, lambda incoming: listener(incoming.payload))
        query = encode(ResponseQuery(response=response, after=after))
        try:
            self._bus.publish(self._bus.subjects.response(owner), query, reply=inbox)
        except BusUnavailable:
            listener(b"")
        return subscription.unsubscribe

    def _listen_here(self, response: str, after: int, listener: Listener) -> Callable[[], None]:
        work = self._works.get(response)
        tape = self._ended.get(response) if work is None else work.tape
        if tape is None:
            tape = Tape()
            tape.end()
        return tape.listen(after, listener)

    def _tell(self, reply: str, event: bytes) -> None:
        """Send an event to another frontend; what the bus does not take is missed there."""
        try:
            if reply:
                self._bus.publish(reply, event)
        except BuswayError as error:
            log.debug("response.untold", reason=str(error)[:200])

    async def _run_detached(self, work: Work, function: Callable[[], Awaitable[None]]) -> None:
        try:
            await function()
        finally:
            self.end(work)

    async def _answer(self, query: ResponseQuery, reply: str) -> None:
        try:
            is_running = await self._settle(query.response, cancel=query.cancel)
            if reply:
                self._bus.publish(reply, encode(ResponseState(is_running=is_running)))
        except BuswayError as error:
            log.debug("response.unanswered", reason=str(error)[:200])
        finally:
            self._num_queries -= 1

    async def _settle(self, response: str, *, cancel: bool) -> bool:
        work = self._works.get(response)
        if work is None:
            return False
        if cancel and work.is_detached:
            work.scope.cancel()
        elif not work.is_saving:
            return True
        with anyio.move_on_after(SAVE_TIMEOUT_S):
            await work.done.wait()
        return response in self._works
