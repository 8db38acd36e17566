"""I/O. The handlers of OpenAI's Responses API."""

import re
import time

import anyio
import msgspec

from bus.errors import InvalidRequest, PromptTooLong
from bus.messages.responses import StoredResponse
from bus.protocol import Bus
from frontend.auth.identity import caller
from frontend.doors.background import Background, Job
from frontend.doors.bodies import read_body
from frontend.doors.call import JSON, Call, Headers, Reply, header_lines, ignored_header, json_reply
from frontend.doors.generate import EVENT_LINES, Generate
from frontend.doors.routes import Doc, Route
from frontend.doors.sinks import EventSink
from frontend.intake import Intake
from frontend.openai.body import renamed
from frontend.pages import read_page, read_query
from frontend.plan import Plan
from frontend.responses.answers import Deleted, InputTokens, ResponseShown, Terms, new_response, response_id
from frontend.responses.body import PromptBody, ResponsesBody, prompt_body, responses_body
from frontend.responses.conversation import UNFINISHED, Asked, Conversations
from frontend.responses.convert import prompt_turn, shorten, to_chat
from frontend.responses.events import ResponseEvent, ResponsesDialect
from frontend.responses.listing import DEFAULT_LIMIT, MAX_LIMIT, ItemList, render_page
from frontend.responses.store import MAX_INPUT_BYTES, ResponseStore
from frontend.responses.tape import Heard, Tape, ending, is_ending
from frontend.responses.tools import Offered, read_tools
from frontend.responses.works import Works

_NUMBER = re.compile(r"-?[0-9]{1,9}")
_PARAMS = {
    "messages": "input",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
}
"""Names of this API for those of chat completions, where errors name them."""


class Responses:
    """Makes, shows and continues responses."""

    def __init__(self, bus: Bus, frontend: str, intake: Intake, generate: Generate) -> None:
        self._intake = intake
        self._generate = generate
        self._store = ResponseStore(bus)
        self._works = Works(bus, frontend)
        self._background = Background(self._store, self._works, intake)
        self._conversations = Conversations(self._store, self._works, max_bytes=intake.config.max_body_bytes)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", "/v1/responses", self.create, doc=Doc(ResponsesBody, ResponseShown, ResponseEvent)),
            Route("POST", "/v1/responses/input_tokens", self.count_tokens, doc=Doc(PromptBody, InputTokens)),
            Route(
                "GET",
                "/v1/responses/{response}",
                self.show,
                doc=Doc(answer=ResponseShown, event=ResponseEvent, query=("stream", "starting_after")),
            ),
            Route("DELETE", "/v1/responses/{response}", self.delete, doc=Doc(answer=Deleted)),
            Route("POST", "/v1/responses/{response}/cancel", self.cancel, doc=Doc(answer=ResponseShown)),
            Route(
                "GET",
                "/v1/responses/{response}/input_items",
                self.list_input,
                doc=Doc(answer=ItemList, query=("limit", "after", "order")),
            ),
        ]

    async def run(self, stopping: anyio.Event) -> None:
        """Answer other frontends until `stopping`; return when what runs in the background has ended."""
        await self._works.run(stopping)

    async def create(self, call: Call) -> Reply | None:
        """Make a response: at once, as a stream, or in the background."""
        body, read = await read_body(call, self._intake, responses_body)
        if body.background and body.store is False:
            raise InvalidRequest("A response in the background is stored: leave out 'store'.", param="store")
        tenant = caller.get().tenant
        asked = await self._conversations.read(tenant, body, read.num_bytes)
        body = _with_store(body, asked)
        plan = await self._prepare(call, body, asked)
        shown = _new_response(body, response_id(call.request_id, self._works.frontend), plan)
        offered = read_tools(body.tools or ())
        self._intake.check_known(offered.left_out)
        dialect = _dialect(shown, plan, offered)
        stored = StoredResponse(
            tenant=tenant,
            frontend=self._works.frontend,
            status=shown.status,
            previous=body.previous_response_id or "",
            input=msgspec.json.encode(asked.input),
            response=b"",
        )
        headers = ignored_header(read.ignored + offered.left_out)
        if body.background:
            stored = msgspec.structs.replace(stored, response=msgspec.json.encode(shown))
            tape = Tape() if body.stream else None
            if tape is not None:  # whoever loses the stream early needs to know the response
                tape.send(dialect.opening(), b"", b"")
            await self._background.start(Job(call.request_id, plan, dialect, shown, stored, tape))
            if tape is not None:
                await self._follow(call, shown.id, -1, headers)
                return None
            return Reply(stored.response, headers=(*JSON, *headers))
        if not shown.store:
            return await self._generate.respond(call, plan, dialect, is_stream=bool(body.stream), headers=headers)
        work = self._works.begin(shown.id)
        try:
            reply = await self._generate.respond(call, plan, dialect, is_stream=bool(body.stream), headers=headers)
            if dialect.made is not None:
                work.is_saving = True
                made = msgspec.structs.replace(stored, status=dialect.made.status, response=dialect.made.body)
                await self._store.save(shown.id, made)
        finally:
            self._works.end(work)
        return reply

    async def _prepare(self, call: Call, body: ResponsesBody, asked: Asked) -> Plan:
        """Say what is to be generated; with `truncation: auto` older turns are left out until the rest fits."""
        items = asked.items
        while True:
            try:
                return await self._generate.prepare(call, asked.num_bytes, to_chat(body, items), lowers_bound=True)
            except PromptTooLong as error:
                shorter = shorten(items)
                if body.truncation != "auto" or len(shorter) == len(items):
                    error.param = "input"
                    raise
                items = shorter
            except InvalidRequest as error:
                raise renamed(error, _PARAMS) from error

    async def count_tokens(self, call: Call) -> Reply:
        """Count the tokens of a prompt: it is rendered and tokenized as for an answer."""
        body, read = await read_body(call, self._intake, prompt_body)
        asked = await self._conversations.read(caller.get().tenant, body, read.num_bytes)
        answer = InputTokens(await self._intake.count_prompt(asked.num_bytes, prompt_turn(body, asked.items)))
        return json_reply(msgspec.json.encode(answer), read.ignored)

    async def show(self, call: Call) -> Reply | None:
        """Show a stored response, or stream its events.

        With `stream=true`, the events after number `starting_after` of one that was begun in the background as a
        stream, for as long as its maker has them; of any other one the last event alone.
        """
        found = await self._conversations.find(caller.get().tenant, call.params["response"])
        query = read_query(call.exchange.query)
        if query.get("stream") != "true":
            return Reply(found.stored.response)
        after = query.get("starting_after", "-1")
        if not _NUMBER.fullmatch(after):
            raise InvalidRequest(
                f"Invalid value for 'starting_after': {after[:80]!r} is no number.", param="starting_after"
            )
        await self._follow(call, call.params["response"], int(after))
        return None

    async def _follow(self, call: Call, response: str, after: int, headers: Headers = ()) -> None:
        """Stream the events of a response to this client; it goes on when the client leaves."""
        events = EventSink(call.exchange, EVENT_LINES % call.shown_id + header_lines(headers), call.arrived_at)
        heard = Heard()
        number, has_end = after, False
        call.exchange.on_lost = heard.end
        stop = self._works.listen(response, after, heard.take)
        try:
            while not has_end and not call.exchange.is_lost:
                if not heard.is_empty:
                    event = heard.next()
                    number += 1
                    has_end = is_ending(event)
                    if has_end:
                        events.close(b"", event)
                    else:
                        events.send(event, b"", b"")
                        await call.exchange.drain()
                    continue
                if heard.is_over:
                    break
                with anyio.move_on_after(self._intake.config.keep_alive_s) as waiting:
                    await heard.wait()
                if waiting.cancelled_caught:
                    events.keep_alive()
                    if not await self._works.ask(response) and heard.is_empty:
                        break
        finally:
            stop()
            call.exchange.on_lost = None
        if not has_end and not call.exchange.is_lost:
            found = await self._conversations.find(caller.get().tenant, response)
            events.close(b"", ending(found.stored, number + 1))

    async def list_input(self, call: Call) -> Reply:
        """List the items that a stored response was asked with."""
        page = read_page(read_query(call.exchange.query), default=DEFAULT_LIMIT, most=MAX_LIMIT)
        response = call.params["response"]
        found = await self._conversations.find(caller.get().tenant, response)
        items = msgspec.json.decode(found.stored.input, type=list[msgspec.Raw])
        return Reply(render_page(response, items, page))

    async def delete(self, call: Call) -> Reply:
        """Forget a stored response; what is still made is stopped first."""
        response = call.params["response"]
        found = await self._conversations.find(caller.get().tenant, response)
        if found.stored.status in UNFINISHED:
            await self._works.ask(response, cancel=True)
        await self._store.delete(found)
        return Reply(msgspec.json.encode(Deleted(response)))

    async def cancel(self, call: Call) -> Reply:
        """Stop a response in the background; one that has ended stays as it is."""
        tenant, response = caller.get().tenant, call.params["response"]
        found = await self._conversations.find(tenant, response)
        if found.stored.status in UNFINISHED:
            await self._works.ask(response, cancel=True)
            found = await self._conversations.find(tenant, response)
        elif not msgspec.json.decode(found.stored.response, type=_Background).background:
            raise InvalidRequest("Only a response in the background can be cancelled.", param="response_id")
        return Reply(found.stored.response)


class _Background(msgspec.Struct, frozen=True):
    background: bool = False


def _with_store(body: ResponsesBody, asked: Asked) -> ResponsesBody:
    """Return the body, not to be stored if it is too large and nobody insists; else raise `InvalidRequest`."""
    num_bytes = sum([len(bytes(raw)) for raw in asked.input])
    if num_bytes <= MAX_INPUT_BYTES or body.store is False:
        return body
    if body.store or body.background:
        raise InvalidRequest(
            f"The input of {num_bytes} bytes is too large to be stored (at most {MAX_INPUT_BYTES}): send "
            "'store': false.",
            param="store",
        )
    return msgspec.structs.replace(body, store=False)


def _new_response(body: ResponsesBody, response: str, plan: Plan) -> ResponseShown:
    sampling = plan.generations[0].sampling
    return new_response(
        body,
        response,
        int(time.time()),
        plan.model.name,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )


def _dialect(shown: ResponseShown, plan: Plan, offered: Offered) -> ResponsesDialect:
    terms = Terms(
        clock=time.time,
        logprobs_of=None if plan.generations[0].sampling.top_logprobs is None else plan.model.vocabulary,
        names=offered.names,
    )
    return ResponsesDialect(shown, terms)
