"""I/O. Responses that are made in the background, on the frontend that took them, whether their client is there or not.

When that frontend stops, what it could not finish in its time of grace is stored as `failed`. When it dies, whoever
looks at the response next finds its maker gone and marks it so (`frontend.responses.conversation`).
"""

from typing import NamedTuple

import anyio
import msgspec
import structlog

from bus.errors import BuswayError
from bus.messages.responses import ResponseStatus, StoredResponse
from frontend.doors.sinks import BodySink
from frontend.errors import answer_for
from frontend.intake import Intake
from frontend.plan import Plan
from frontend.responses.answers import ErrorShown, ResponseShown, failed, with_outcome
from frontend.responses.events import ResponsesDialect
from frontend.responses.store import ResponseStore
from frontend.responses.tape import Tape
from frontend.responses.works import SAVE_TIMEOUT_S, Work, Works

_STOPPED = ErrorShown("server_error", "The frontend that made this response was stopped. Send the request again.")

log = structlog.get_logger()


class Job(NamedTuple):
    """A response that is to be made."""

    request_id: str
    plan: Plan
    dialect: ResponsesDialect
    shown: ResponseShown
    """As it is before it is made."""
    stored: StoredResponse
    """Its entry, likewise."""
    tape: Tape | None = None
    """Takes its events, if it is streamed."""


class Background:
    """Makes responses that nobody waits for."""

    def __init__(self, store: ResponseStore, works: Works, intake: Intake) -> None:
        self._store = store
        self._works = works
        self._intake = intake

    async def start(self, job: Job) -> None:
        """Store the response as it is now and begin to make it; raise what hinders that."""
        work = self._works.begin(job.shown.id, is_detached=True, tape=job.tape)
        try:
            await self._store.put(job.shown.id, job.stored)
            self._works.detach(work, lambda: self._make(work, job))
        except BaseException:
            self._works.end(work)
            raise

    async def _make(self, work: Work, job: Job) -> None:
        """Make a response and store what it came to, also when it is stopped."""
        outcome = _outcome(job, "failed", _STOPPED)
        try:
            with work.scope:
                await self._store.put(job.shown.id, _outcome(job, "in_progress"))
                sink = job.tape or BodySink()
                await self._intake.answer(job.request_id, job.plan, job.dialect, sink, is_stream=job.tape is not None)
            if job.dialect.made is not None:
                made = job.dialect.made
                outcome = msgspec.structs.replace(job.stored, status=made.status, response=made.body)
            elif work.scope.cancelled_caught:
                outcome = _outcome(job, "cancelled")
        except Exception as error:
            if not isinstance(error, BuswayError):
                log.error("response.crashed", response=job.shown.id, exc_info=error)
            rendered = msgspec.json.encode(failed(job.shown, answer_for(error).error))
            outcome = msgspec.structs.replace(job.stored, status="failed", response=rendered)
        finally:
            work.is_saving = True
            with anyio.move_on_after(SAVE_TIMEOUT_S, shield=True):
                await self._store.save(job.shown.id, outcome)


def _outcome(job: Job, status: ResponseStatus, error: ErrorShown | None = None) -> StoredResponse:
    rendered = with_outcome(job.stored.response, status, error)
    return msgspec.structs.replace(job.stored, status=status, response=rendered)
