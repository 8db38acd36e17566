"""I/O. The handlers of chat completions and completions: body in, generation out, streamed or whole."""

import time

import msgspec

from bus.errors import InvalidRequest
from frontend.doors.call import JSON, Call, Headers, Reply, header_lines, ignored_header
from frontend.doors.sinks import BodySink, EventSink
from frontend.intake import Intake, off_loop
from frontend.model import ServedModel
from frontend.openai.answers import Kind, WholeAnswer
from frontend.openai.body import ChatBody, CompletionBody, chat_body, completion_body
from frontend.openai.chunks import CHAT, COMPLETION, EventChunks, Shape
from frontend.request import Generation, Request
from frontend.stream import answer_to, stream_to

_EVENTS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Generate:
    """Turns bodies into generations and waits for their end."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def chat(self, call: Call) -> Reply | None:
        """Answer `POST /v1/chat/completions`."""
        data = await call.read_json(self._intake.config.max_body_bytes)
        body, ignored = await off_loop(len(data), chat_body.decode, data)
        return await self._generate(call, len(data), body, ignored_header(ignored))

    async def complete(self, call: Call) -> Reply | None:
        """Answer `POST /v1/completions`."""
        data = await call.read_json(self._intake.config.max_body_bytes)
        body, ignored = await off_loop(len(data), completion_body.decode, data)
        return await self._generate(call, len(data), body, ignored_header(ignored))

    async def _generate(
        self, call: Call, num_bytes: int, body: ChatBody | CompletionBody, headers: Headers
    ) -> Reply | None:
        if not body.model:
            raise InvalidRequest("You must provide a model parameter.", param="model")
        model = self._intake.models.find(body.model)
        generation = await self._intake.prepare(num_bytes, body, model)
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            shape = CHAT if isinstance(body, ChatBody) else COMPLETION
            await self._stream(call, shape, model, generation, headers, include_usage=include_usage)
            return None
        kind: Kind = "chat" if isinstance(body, ChatBody) else "completion"
        return await self._answer(call, kind, model, generation, headers)

    async def _stream(
        self,
        call: Call,
        shape: Shape,
        model: ServedModel,
        generation: Generation,
        headers: Headers,
        *,
        include_usage: bool,
    ) -> None:
        chunks = EventChunks(
            shape,
            call.request_id,
            int(time.time()),
            msgspec.json.encode(model.name),
            include_usage=include_usage,
            logprobs_of=None if generation.sampling.top_logprobs is None else model.vocabulary,
        )
        sink = EventSink(call.exchange, header_lines((*_EVENTS, (b"x-request-id", call.shown_id), *headers)))
        output = stream_to(sink, chunks, generation, model.vocabulary)
        await self._run(call, Request(call.request_id, generation, output), sink)

    async def _answer(
        self, call: Call, kind: Kind, model: ServedModel, generation: Generation, headers: Headers
    ) -> Reply:
        answer = WholeAnswer(
            kind,
            call.request_id,
            int(time.time()),
            model.name,
            logprobs_of=None if generation.sampling.top_logprobs is None else model.vocabulary,
        )
        sink = BodySink()
        output = answer_to(sink, answer, generation, model.vocabulary)
        await self._run(call, Request(call.request_id, generation, output), sink)
        return Reply(sink.body, headers=(*JSON, *headers))

    async def _run(self, call: Call, request: Request, sink: EventSink | BodySink) -> None:
        """Have the request served for as long as the client is there."""

        def give_up() -> None:
            self._intake.dispatcher.cancel(request)
            sink.done.set()

        if call.exchange.is_lost:
            return
        call.exchange.on_lost = give_up
        try:
            await self._intake.run(request, sink)
        finally:
            call.exchange.on_lost = None
