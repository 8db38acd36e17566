"""I/O. The handlers of `/tokenize` and `/detokenize`."""

import msgspec

from frontend.doors.bodies import read_body
from frontend.doors.call import Call, Reply, json_reply
from frontend.doors.routes import Doc, Route
from frontend.intake import Intake, off_loop
from frontend.openai.tokens import (
    DetokenizeBody,
    Detokenized,
    TokenizeBody,
    Tokenized,
    detokenize,
    detokenize_body,
    tokenize,
    tokenize_body,
)

_encode = msgspec.json.encode


class Tokens:
    """Text to token ids and back, with a model's own tokenizer."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def routes(self) -> list[Route]:
        """Return the routes, with and without the version."""
        return [
            route
            for prefix in ("", "/v1")
            for route in (
                Route("POST", f"{prefix}/tokenize", self.tokenize, doc=Doc(TokenizeBody, Tokenized)),
                Route("POST", f"{prefix}/detokenize", self.detokenize, doc=Doc(DetokenizeBody, Detokenized)),
            )
        ]

    async def tokenize(self, call: Call) -> Reply:
        """Tokenize a prompt, or a conversation as the model's template renders it."""
        body, read = await read_body(call, self._intake, tokenize_body)
        model = self._intake.find_model(body.model)
        answer = await off_loop(read.num_bytes, lambda given: _encode(tokenize(given, model)), body)
        return json_reply(answer, read.ignored)

    async def detokenize(self, call: Call) -> Reply:
        """Return the text of token ids."""
        body, read = await read_body(call, self._intake, detokenize_body)
        model = self._intake.find_model(body.model)
        answer = await off_loop(read.num_bytes, lambda given: _encode(detokenize(given, model)), body)
        return json_reply(answer, read.ignored)
