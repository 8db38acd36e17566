"""I/O. The door for plain NATS clients: a question on `ask.v1.{model}.{tenant}`, the answer on its reply subject.

    nats request busway.ask.v1.busway-tiny.me 'What is Busway?'
    nats request busway.ask.v1.busway-tiny.me '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}'

The subject names the model (its slug) and a tenant, for usage records. The question is plain text, or JSON as
`frontend.doors.ask_body` takes it. One message answers it, because `nats request` waits for one only:

    {"text": "...", "done": true, "finish_reason": "stop", "model": "...", "request_id": "...", "usage": {...}}

With `"stream": true` the text comes in pieces, `{"text": "..."}` each, and then a message like the one above without
`text`. What fails is one message `{"error": {"message", "type", "param", "code"}}`, with the status as HTTP has it in
the header `Nats-Service-Error-Code`, as NATS services do. A publisher that can set no reply subject names one in the
body: `"reply_to"`. A question without either is not computed: nobody would hear the answer.
"""

import re
import secrets

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.errors import BusUnavailable, InvalidRequest
from bus.metrics import FRONTEND_REQUESTS
from bus.protocol import Bus, Incoming
from frontend.doors.ask_answers import AskAnswer, AskChunks
from frontend.doors.ask_body import decode_ask
from frontend.doors.sinks import SubjectSink
from frontend.errors import TooManyRequests, answer_for, envelope
from frontend.intake import Intake, off_loop
from frontend.request import Request
from frontend.stream import answer_to, stream_to

QUEUE = "frontends"
"""Frontends share the questions: one of them answers."""
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
            subject = self._bus.subjects.ask("*", "*")
            subscription = self._bus.subscribe(subject, lambda incoming: self._take(incoming, tasks), queue=QUEUE)
            try:
                await stopping.wait()
            finally:
                subscription.unsubscribe()

    def _take(self, incoming: Incoming, tasks: TaskGroup) -> None:
        if self._num_running >= self._intake.config.max_requests:
            self._refuse(incoming.reply, TooManyRequests("Too many questions are in flight here; try again soon."))
            return
        self._num_running += 1
        tasks.start_soon(self._handle, incoming)

    async def _handle(self, incoming: Incoming) -> None:
        """Answer one question; its reply subject becomes known while it is decoded."""
        sink = SubjectSink(self._bus, incoming.reply)
        status = 200
        try:
            await self._answer(incoming, sink)
        except Exception as error:
            status = answer_for(error).status
            if status == 500:
                log.error("question.crashed", exc_info=error)
            self._refuse(sink.subject, error)
        finally:
            self._num_running -= 1
            FRONTEND_REQUESTS.labels(endpoint="ask", status=str(status)).inc()

    async def _answer(self, incoming: Incoming, sink: SubjectSink) -> None:
        slug, tenant = self._bus.subjects.parse(incoming.subject).fields
        model = self._intake.models.find_slug(slug)
        num_bytes = len(incoming.payload)
        can_chat = model.template is not None
        ask = await off_loop(num_bytes, lambda data: decode_ask(data, can_chat=can_chat), incoming.payload)
        sink.subject = sink.subject or ask.reply_to
        if not self._may_reply(sink.subject):
            log.warning("question.without_reply", model=model.name, tenant=tenant)
            sink.subject = ""
            raise InvalidRequest("The question names no subject for its answer.", param="reply_to")
        if ask.body.model not in ("", model.name):
            raise InvalidRequest(f"The subject asks {model.name!r}, the body {ask.body.model!r}.", param="model")
        generation = await self._intake.prepare(num_bytes, ask.body, model, tenant=tenant)
        request_id = secrets.token_hex(16)
        if ask.body.stream:
            output = stream_to(sink, AskChunks(request_id, model.name), generation, model.vocabulary)
        else:
            output = answer_to(sink, AskAnswer(request_id, model.name), generation, model.vocabulary)
        await self._intake.run(Request(request_id, generation, output), sink)

    def _may_reply(self, subject: str) -> bool:
        """Whether an answer may go there: not to the server's own subjects, nor to ours."""
        return bool(_SUBJECT.match(subject)) and not subject.startswith(f"{self._bus.subjects.namespace}.")

    def _refuse(self, subject: str, error: Exception) -> None:
        if not self._may_reply(subject):
            return
        answer = answer_for(error)
        shown = re.sub(r"[^ -~]", " ", answer.error.message)[:500]
        headers = {"Nats-Service-Error-Code": str(answer.status), "Nats-Service-Error": shown}
        try:
            self._bus.publish(subject, envelope(answer.error), headers=headers)
        except BusUnavailable:
            log.debug("question.unanswered", subject=subject)
