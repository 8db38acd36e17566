"""I/O. The door for plain NATS clients: a question on `ask.v1.{model}.{tenant}`, the answer on its reply subject.

    nats request busway.ask.v1.busway-tiny.me 'What is Busway?'
    nats request busway.ask.v1.busway-tiny.me '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}'

The subject names the model (its slug) and a tenant, for usage records and shares. On a guarded broker a tenant's
credentials are good for its own subjects, and its inboxes begin with `_INBOX.{tenant}.` (`nats --inbox-prefix`). The
question is plain text, or JSON as `frontend.doors.ask_body` takes it. One message answers it, because `nats request`
waits for one only:

    {"text": "...", "done": true, "finish_reason": "stop", "model": "...", "request_id": "...", "usage": {...}}

With `"stream": true` the text comes in pieces, `{"text": "..."}` each, and then a message like the one above without
`text`. What fails is one message `{"error": {"message", "type", "param", "code"}}`, with the status as HTTP has it in
the header `Nats-Service-Error-Code`, as NATS services do. A publisher that can set no reply subject names one in the
body: `"reply_to"`. A question without either is not computed: nobody would hear the answer.

With the header `Busway-Format: openai` a JSON question is one of /v1/chat/completions or, where it has a `prompt`, of
/v1/completions, and so is the answer: one message, or with `"stream": true` one for each chunk and an empty one last.
"""

import re
import secrets

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.errors import BusUnavailable, InvalidRequest
from bus.metrics import FRONTEND_REQUESTS
from bus.protocol import Bus
from bus.replies import INBOX
from bus.service import Call, Endpoint, Service, run_service
from bus.version import VERSION
from frontend.deltas import Dialect
from frontend.doors.ask_answers import AskDialect
from frontend.doors.ask_body import decode_ask
from frontend.doors.generate import chat_dialect, completion_dialect
from frontend.doors.sinks import ChunkSink, SubjectSink
from frontend.errors import TooManyRequests, answer_for, envelope
from frontend.intake import Intake, off_loop
from frontend.openai.body import ChatBody, CompletionBody
from frontend.plan import Plan

QUEUE = "frontends"
"""Frontends share the questions: one of them answers."""
FORMAT = "Busway-Format"
_SUBJECT = re.compile(r"[^\s.*>$][^\s.*>]{0,127}(\.[^\s.*>]{1,128}){0,15}\Z")

log = structlog.get_logger()


class NatsDoor:
    """Answers questions; a task for each of them, `frontend.max_requests` at most."""

    def __init__(self, bus: Bus, intake: Intake) -> None:
        self._bus = bus
        self._intake = intake
        self._num_running = 0

    async def run(self, stopping: anyio.Event) -> None:
        """Take questions until `stopping`, and return when those that were taken are answered."""
        async with anyio.create_task_group() as tasks:
            endpoint = Endpoint(
                name="ask",
                subject=self._bus.subjects.ask("*", "*"),
                handler=lambda call: self._take(call, tasks),
                queue=QUEUE,
            )
            service = Service(
                name=f"{self._bus.subjects.namespace}-frontend",
                version=VERSION,
                description="Answers questions to models: text or JSON on ask.v1.{model}.{tenant}",
                endpoints=[endpoint],
            )
            with run_service(self._bus, service):
                await stopping.wait()

    def _take(self, call: Call, tasks: TaskGroup) -> None:
        if self._num_running >= self._intake.config.max_requests:
            busy = TooManyRequests("Too many questions are in flight here; try again soon.")
            self._refuse(call, call.reply, busy)
            return
        self._num_running += 1
        tasks.start_soon(self._handle, call)

    async def _handle(self, call: Call) -> None:
        """Answer one question; its reply subject becomes known while it is decoded."""
        is_openai = (call.headers or {}).get(FORMAT, "").lower() == "openai"
        sink = (ChunkSink if is_openai else SubjectSink)(self._bus, call.reply)
        status = 200
        try:
            await self._answer(call, sink)
        except Exception as error:
            status = answer_for(error).status
            if status == 500:
                log.error("question.crashed", exc_info=error)
            self._refuse(call, sink.subject, error)
        finally:
            self._num_running -= 1
            call.finish()
            FRONTEND_REQUESTS.counts["ask", str(status)] += 1

    async def _answer(self, call: Call, sink: SubjectSink) -> None:
        slug, tenant = self._bus.subjects.parse(call.subject).fields
        model = self._intake.models.find_slug(slug)
        num_bytes = len(call.payload)
        is_openai = isinstance(sink, ChunkSink)
        can_chat = model.template is not None and not is_openai
        ask = await off_loop(num_bytes, lambda data: decode_ask(data, can_chat=can_chat), call.payload)
        sink.subject = sink.subject or ask.reply_to
        if not self._may_reply(sink.subject, call):
            log.warning("question.without_reply", model=model.name, tenant=tenant)
            sink.subject = ""
            raise InvalidRequest("The question names no subject for its answer.", param="reply_to")
        if ask.body.model not in ("", model.name):
            raise InvalidRequest(f"The subject asks {model.name!r}, the body {ask.body.model!r}.", param="model")
        if (ask.body.n or 1) > 1 and not is_openai:
            raise InvalidRequest("A question has one answer: leave 'n' out.", param="n")
        plan = await self._intake.prepare(num_bytes, ask.body, model, tenant=tenant)
        dialect = _openai_dialect(ask.body, plan) if is_openai else AskDialect()
        await self._intake.answer(secrets.token_hex(16), plan, dialect, sink, is_stream=bool(ask.body.stream))

    def _may_reply(self, subject: str, call: Call) -> bool:
        """Whether an answer may go there: not to the server's own subjects, nor to ours.

        Where the broker knows tenants, only to an inbox of the one who asks: it would let us write into any other.
        """
        if not _SUBJECT.match(subject) or subject.startswith(f"{self._bus.subjects.namespace}."):
            return False
        return not self._bus.is_guarded or subject.startswith(f"{INBOX}.{call.subject.rpartition('.')[2]}.")

    def _refuse(self, call: Call, subject: str, error: Exception) -> None:
        answer = answer_for(error)
        shown = re.sub(r"[^ -~]", " ", answer.error.message)[:500]
        to = subject if self._may_reply(subject, call) else ""
        try:
            call.fail(str(answer.status), shown, envelope(answer.error), to=to)
        except BusUnavailable:
            log.debug("question.unanswered", subject=subject)


def _openai_dialect(body: ChatBody | CompletionBody, plan: Plan) -> Dialect:
    return chat_dialect(body, plan) if isinstance(body, ChatBody) else completion_dialect(body, plan)
