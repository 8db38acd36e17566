"""I/O. One line of a batch as a request: through the same intake as everybody's, in the class that waits for others."""

import msgspec

from bus.errors import InvalidRequest
from frontend.doors.embeddings import Embeddings
from frontend.doors.generate import Generate, chat_dialect, completion_dialect
from frontend.intake import Intake, off_loop
from frontend.openai.body import ChatBody, CompletionBody, chat_body, completion_body
from frontend.openai.embeddings import embeddings_body
from frontend.plan import Plan


class Work:
    """Runs lines."""

    def __init__(self, intake: Intake, generate: Generate, embeddings: Embeddings) -> None:
        self._intake = intake
        self._generate = generate
        self._embeddings = embeddings

    async def answer(self, endpoint: str, request_id: str, data: bytes) -> bytes:
        """Return the answer to a body, as the caller may have it; raise what its owner is to be told.

        When cancelled, so is the work.
        """
        if endpoint == "/v1/embeddings":
            body, _ = await off_loop(len(data), embeddings_body.decode, data)
            return await self._embeddings.run_detached(request_id, len(data), body, latency_class="batch")
        if endpoint == "/v1/chat/completions":
            chat, _ = await off_loop(len(data), chat_body.decode, data)
            plan = await self._plan(len(data), chat)
            return await self._generate.run_detached(request_id, plan, chat_dialect(chat, plan))
        completion, _ = await off_loop(len(data), completion_body.decode, data)
        plan = await self._plan(len(data), completion)
        return await self._generate.run_detached(request_id, plan, completion_dialect(completion, plan))

    async def _plan(self, num_bytes: int, body: ChatBody | CompletionBody) -> Plan:
        if body.stream:
            raise InvalidRequest("A line of a batch is not streamed: leave out 'stream'.", param="stream")
        model = self._intake.find_model(body.model)
        plan = await self._intake.prepare(num_bytes, body, model)
        generations = [msgspec.structs.replace(each, latency_class="batch") for each in plan.generations]
        return msgspec.structs.replace(plan, generations=generations)
