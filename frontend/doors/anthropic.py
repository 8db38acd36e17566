"""I/O. The handlers of Anthropic's Messages API."""

from bus.errors import InvalidRequest
from frontend.anthropic.answers import MessageShown, TokenCountShown, token_count
from frontend.anthropic.body import CountBody, MessagesBody, count_body, messages_body
from frontend.anthropic.convert import prompt_turn, to_chat
from frontend.anthropic.events import AnthropicDialect, Event
from frontend.doors.bodies import read_body
from frontend.doors.call import JSON, Call, Headers, Reply, ignored_header
from frontend.doors.generate import Generate
from frontend.doors.routes import Doc, Route
from frontend.intake import Intake
from frontend.openai.body import renamed

_PARAMS = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}
"""Names of this API for those of chat completions, where errors name them."""


class Anthropic:
    """Turns Anthropic's bodies into chat turns; what is served, and how, is the business of `Generate`."""

    def __init__(self, intake: Intake, generate: Generate) -> None:
        self._intake = intake
        self._generate = generate

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("POST", "/v1/messages", self.create, "anthropic", Doc(MessagesBody, MessageShown, Event)),
            Route("POST", "/v1/messages/count_tokens", self.count_tokens, "anthropic", Doc(CountBody, TokenCountShown)),
        ]

    async def create(self, call: Call) -> Reply | None:
        """Answer a conversation, as Anthropic's Messages API does."""
        body, read = await read_body(call, self._intake, messages_body)
        try:
            plan = await self._generate.prepare(call, read.num_bytes, to_chat(body), lowers_bound=True)
        except InvalidRequest as error:
            raise renamed(error, _PARAMS) from error
        return await self._generate.respond(
            call, plan, AnthropicDialect(), is_stream=bool(body.stream), headers=_headers(call, read.ignored)
        )

    async def count_tokens(self, call: Call) -> Reply:
        """Count the tokens of a conversation: it is rendered and tokenized as for an answer."""
        body, read = await read_body(call, self._intake, count_body)
        num_tokens = await self._intake.count_prompt(read.num_bytes, prompt_turn(body))
        return Reply(token_count(num_tokens), headers=(*JSON, *_headers(call, read.ignored)))


def _headers(call: Call, ignored: tuple[str, ...]) -> Headers:
    """Return the headers that Anthropic's clients look for."""
    return ((b"request-id", call.shown_id), *ignored_header(ignored))
