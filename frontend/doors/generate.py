"""I/O. The handlers of chat completions and completions: body in, generation out, streamed or whole."""

import asyncio
import time
from collections.abc import Awaitable, Sequence

from bus.messages.base import unpack_u32
from frontend.deltas import Dialect
from frontend.doors.bodies import read_body
from frontend.doors.call import JSON, Call, Headers, Reply, header_lines, ignored_header
from frontend.doors.routes import Doc, Route
from frontend.doors.sinks import BodySink, EventSink
from frontend.hints import read_headers
from frontend.intake import Intake, open_requests
from frontend.openai.answers import TOOL_CALLS, CallShape, ChatShown, ChunkShown, CompletionShown
from frontend.openai.body import TIER_SHOWN, ChatBody, CompletionBody, StreamOptions, chat_body, completion_body
from frontend.openai.chunks import ChatDialect, CompletionDialect, StreamShape
from frontend.openai.tools import custom_names
from frontend.plan import Plan
from frontend.request import Request

_EVENTS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
EVENT_LINES = header_lines(_EVENTS) + b"x-request-id: %b\r\n"
_NO_OPTIONS = StreamOptions()


class Generate:
    """Turns bodies into generations and waits for their end."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._streams: dict[EventSink, Sequence[Request]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", "/v1/chat/completions", self.chat, doc=Doc(ChatBody, ChatShown, ChunkShown)),
            Route("POST", "/v1/completions", self.complete, doc=Doc(CompletionBody, CompletionShown, CompletionShown)),
        ]

    async def chat(self, call: Call) -> Reply | None:
        """Answer a conversation, as OpenAI's chat completions do."""
        body, read = await read_body(call, self._intake, chat_body)
        plan = await self.prepare(call, read.num_bytes, body)
        dialect, headers = chat_dialect(body, plan), ignored_header(read.ignored)
        answering = self.respond(call, plan, dialect, is_stream=bool(body.stream), headers=headers)
        del body, read  # what each of hundreds holds while it waits is cold memory for all of them
        return await answering

    async def complete(self, call: Call) -> Reply | None:
        """Go on with texts or token ids."""
        body, read = await read_body(call, self._intake, completion_body)
        plan = await self.prepare(call, read.num_bytes, body)
        dialect, headers = completion_dialect(body, plan), ignored_header(read.ignored)
        answering = self.respond(call, plan, dialect, is_stream=bool(body.stream), headers=headers)
        del body, read  # what each of hundreds holds while it waits is cold memory for all of them
        return await answering

    def prepare(
        self, call: Call, num_bytes: int, body: ChatBody | CompletionBody, *, lowers_bound: bool = False
    ) -> Awaitable[Plan]:
        """Say what a body of that size asks for; raise what the client is to be told."""
        model = self._intake.find_model(body.model)
        hints = read_headers(call.exchange.headers)
        return self._intake.prepare(num_bytes, body, model, hints=hints, lowers_bound=lowers_bound)

    async def respond(
        self, call: Call, plan: Plan, dialect: Dialect, *, is_stream: bool, headers: Headers = ()
    ) -> Reply | None:
        """Have a plan carried out for as long as the client is there, and answer in its dialect.

        None says that the answer went out as a stream, or that the client is gone.
        """
        facts, exchange = plan.facts(call.request_id, time.time()), call.exchange
        sink: EventSink | BodySink
        if is_stream:
            lines = EVENT_LINES % call.shown_id + (header_lines(headers) if headers else b"")
            sink = EventSink(exchange, lines, call.arrived_at)
            outputs = plan.streams(dialect, facts, sink)
        else:
            sink = BodySink()
            outputs = plan.answers(dialect, facts, sink)
        requests = open_requests(call.request_id, plan, outputs)

        def give_up() -> None:
            self._intake.cancel(requests)
            sink.end()

        if exchange.is_lost:
            return None
        exchange.on_lost = give_up
        if isinstance(sink, EventSink):
            self._streams[sink] = requests
            if self._timer is None:
                self._look_later()
        try:
            await self._intake.run(requests, sink)
        finally:
            exchange.on_lost = None
            if isinstance(sink, EventSink):
                del self._streams[sink]
        return Reply(sink.body, headers=(*JSON, *headers)) if isinstance(sink, BodySink) else None

    def _look_later(self) -> None:
        period_s = self._intake.config.keep_alive_s / 2
        self._timer = asyncio.get_running_loop().call_later(period_s, self._keep_alive)

    def _keep_alive(self) -> None:
        """Let streams show a sign of life that were silent since the last look.

        While no worker has a request, it stays silent: an error may still be its HTTP status.
        """
        self._timer = None
        for events, requests in self._streams.items():
            if any(request.worker for request in requests):
                events.keep_alive()
        if self._streams:
            self._look_later()

    async def run_detached(self, request_id: str, plan: Plan, dialect: Dialect) -> bytes:
        """Have a plan carried out for nobody who waits on a connection; return the answer in one piece.

        Raises the error that it ended with. When the caller is cancelled, so is the work.
        """
        sink = BodySink()
        await self._intake.answer(request_id, plan, dialect, sink, is_stream=False)
        return sink.body


def chat_dialect(body: ChatBody, plan: Plan) -> ChatDialect:
    """Return how a turn of a conversation is answered."""
    return ChatDialect(_shape(body, plan, has_logprobs=bool(body.logprobs)))


def completion_dialect(body: CompletionBody, plan: Plan) -> CompletionDialect:
    """Return how a completion is answered."""
    shape = _shape(body, plan, has_logprobs=body.logprobs is not None)
    echoes = [plan.model.vocabulary.decode_all(prompt) for prompt in plan.prompts] if body.echo else []
    return CompletionDialect(shape, echoes=echoes, num_choices=plan.num_kept, is_only_echo=body.max_tokens == 0)


def _shape(body: ChatBody | CompletionBody, plan: Plan, *, has_logprobs: bool) -> StreamShape:
    options = body.stream_options or _NO_OPTIONS
    calls = _calls_of(body) if isinstance(body, ChatBody) and (body.tools or body.functions) else TOOL_CALLS
    return StreamShape(
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        logprobs_of=plan.model.vocabulary if has_logprobs else None,
        prompts=[unpack_u32(each).tolist() for each in plan.prompts] if body.return_token_ids else (),
        calls=calls,
        tier=TIER_SHOWN.get(body.service_tier, "default") if body.service_tier and isinstance(body, ChatBody) else "",
    )


def _calls_of(body: ChatBody) -> CallShape:
    """Return how tools are called; OpenAI says `stop` where the client named the one."""
    if body.calls_functions:
        return CallShape(ending="function_call" if isinstance(body.choice, str) else "stop", is_function=True)
    return CallShape(ending="tool_calls" if isinstance(body.choice, str) else "stop", custom=custom_names(body.offered))
