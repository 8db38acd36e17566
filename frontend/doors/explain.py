"""I/O. `POST /v1/explain`: a body of chat completions or completions in, what would become of it out; nothing runs."""

import msgspec

from bus.errors import BuswayError
from bus.protocol import Bus
from frontend.doors.call import Call, Reply, json_reply
from frontend.doors.routes import Doc, Route
from frontend.explanation import Destination, Explanation, make_explanation, question_for, read_pick, unrouted
from frontend.fleet import Fleet
from frontend.hints import read_headers
from frontend.intake import Intake, off_loop
from frontend.openai.body import ChatBody, CompletionBody, chat_body, completion_body
from frontend.request import Generation

PICK_TIMEOUT_S = 1.0


class _Peek(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")


_peek = msgspec.json.Decoder(_Peek)


class Explain:
    """Prepares a request as if it were to run, and asks a router where it would send it."""

    def __init__(self, bus: Bus, intake: Intake, fleet: Fleet) -> None:
        self._bus = bus
        self._intake = intake
        self._fleet = fleet

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("POST", "/v1/explain", self.explain, doc=Doc(body=ChatBody, answer=Explanation))]

    async def explain(self, call: Call) -> Reply:
        """Answer with an `Explanation`; raise what the request itself would be refused with."""
        data = await call.read_json(self._intake.config.max_body_bytes)
        body: ChatBody | CompletionBody
        if await off_loop(len(data), _is_chat, data):
            body, ignored = await self._intake.decode(chat_body, data)
        else:
            body, ignored = await self._intake.decode(completion_body, data)
        model = self._intake.find_model(body.model)
        hints = read_headers(call.exchange.headers)
        generation = (await self._intake.prepare(len(data), body, model, hints=hints)).generations[0]
        destination = await self._ask_router(generation)
        sizes = self._fleet.block_sizes(generation.model_slug)
        explanation = await off_loop(
            len(data), lambda made: make_explanation(made, model, sizes, destination), generation
        )
        return json_reply(msgspec.json.encode(explanation), ignored)

    async def _ask_router(self, generation: Generation) -> Destination:
        subject = self._bus.subjects.pick(generation.model_slug)
        question = msgspec.json.encode(question_for(generation))
        try:
            answer = await self._bus.request(subject, question, timeout_s=PICK_TIMEOUT_S)
            return read_pick(answer.payload)
        except BuswayError as error:
            return unrouted("no router is running" if error.code == "no_responder" else f"no router answered ({error})")
        except msgspec.MsgspecError:
            return unrouted("the router had no worker to name")


def _is_chat(data: bytes) -> bool:
    try:
        return bool(bytes(_peek.decode(data).messages))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return True  # whose decoder says what is wrong
