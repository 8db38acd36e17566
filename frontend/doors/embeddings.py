"""I/O. The handlers of embeddings, and of rerank and score, which are the cosine of two embeddings."""

import time
from collections.abc import Callable, Sequence

import anyio
import msgspec

from bus.errors import BuswayError, InvalidRequest
from bus.messages.inference import FinishReason, LatencyClass
from frontend.auth.identity import caller
from frontend.doors.bodies import read_body
from frontend.doors.call import Call, Reply, json_reply, while_connected
from frontend.doors.routes import Doc, Route
from frontend.errors import GenerationFailed
from frontend.hints import join_salts
from frontend.intake import Intake, off_loop
from frontend.model import ServedModel
from frontend.openai.embeddings import (
    EmbeddingsBody,
    EmbeddingsShown,
    EmbeddingsUsage,
    RerankBody,
    RerankShown,
    ScoreBody,
    ScoreShown,
    ScoresShown,
    cosine,
    decode_inputs,
    documents,
    embed_generations,
    embeddings_body,
    rerank_body,
    score_body,
    score_texts,
    show_embeddings,
    show_ranking,
)
from frontend.request import Generation, Logprobs, Request, Usage
from frontend.waited import Waited

MAX_IN_FLIGHT = 64
"""Inputs of one request that are computed at a time: others get their turn between them."""


class _End(Waited):
    """The output of a request whose answer is a vector: only its end counts."""

    def push(self, token: int) -> None:
        """Take no token: there is none."""

    def push_logprobs(self, logprobs: Logprobs) -> None:
        """Take none."""

    def flush(self) -> bool:
        """Show nothing."""
        return False

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """End; what was aborted has no vector."""
        if reason == "abort":
            self.error = GenerationFailed("The worker gave the input up.", code="aborted")
        self.end()

    def fail(self, error: BuswayError) -> None:
        """End without a vector."""
        self.error = error
        self.end()


class Embeddings:
    """Turns texts into vectors."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def routes(self) -> list[Route]:
        """Return the routes."""
        rerank, score = Doc(RerankBody, RerankShown), Doc(ScoreBody, ScoresShown)
        return [
            Route("POST", "/v1/embeddings", self.embed, doc=Doc(EmbeddingsBody, EmbeddingsShown)),
            Route("POST", "/v1/rerank", self.rerank, doc=rerank),
            Route("POST", "/rerank", self.rerank, doc=rerank),
            Route("POST", "/v1/score", self.score, doc=score),
            Route("POST", "/score", self.score, doc=score),
        ]

    async def embed(self, call: Call) -> Reply | None:
        """Embed texts or token ids."""
        body, read = await read_body(call, self._intake, embeddings_body)
        answer = await while_connected(call, lambda: self.run_detached(call.request_id, read.num_bytes, body))
        return None if answer is None else json_reply(answer, read.ignored)

    async def run_detached(
        self,
        request_id: str,
        num_bytes: int,
        body: EmbeddingsBody,
        *,
        latency_class: LatencyClass = "standard",
    ) -> bytes:
        """Return the answer to a body; raise what its owner is to be told. When cancelled, so is the work."""
        model = self._intake.find_model(body.model)
        inputs = await off_loop(num_bytes, decode_inputs, body.input)
        vectors, num_tokens = await self._embed(
            request_id, model, inputs, "input", num_bytes=num_bytes, latency_class=latency_class
        )
        return await _off_loop(lambda made: show_embeddings(body, model.name, made, num_tokens), vectors)

    async def rerank(self, call: Call) -> Reply | None:
        """Order documents by the cosine of their embeddings with that of the query."""
        body, read = await read_body(call, self._intake, rerank_body)
        model = self._intake.find_model(body.model)
        texts = [body.query, *documents(body)]

        async def answer() -> bytes:
            vectors, num_tokens = await self._embed(
                call.request_id, model, texts, "documents", num_bytes=read.num_bytes
            )
            return await _off_loop(
                lambda made: show_ranking(body, call.request_id, model.name, made, num_tokens), vectors
            )

        shown = await while_connected(call, answer)
        return None if shown is None else json_reply(shown, read.ignored)

    async def score(self, call: Call) -> Reply | None:
        """Score pairs of texts by the cosine of their embeddings."""
        body, read = await read_body(call, self._intake, score_body)
        model = self._intake.find_model(body.model)
        first, second = score_texts(body)

        async def answer() -> bytes:
            vectors, num_tokens = await self._embed(
                call.request_id, model, [*first, *second], "text_2", num_bytes=read.num_bytes
            )

            def show(made: Sequence[bytes]) -> bytes:
                ones, others = made[: len(first)], made[len(first) :]
                pairs = zip(ones if len(ones) == len(others) else [*ones] * len(others), others, strict=True)
                shown = [ScoreShown(index, cosine(one, other)) for index, (one, other) in enumerate(pairs)]
                usage = EmbeddingsUsage(num_tokens, num_tokens)
                score_id = f"score-{call.request_id}"
                return msgspec.json.encode(ScoresShown(score_id, int(time.time()), model.name, shown, usage))

            return await _off_loop(show, vectors)

        shown = await while_connected(call, answer)
        return None if shown is None else json_reply(shown, read.ignored)

    async def _embed(
        self,
        request_id: str,
        model: ServedModel,
        inputs: Sequence[str | list[int]],
        param: str,
        *,
        num_bytes: int,
        latency_class: LatencyClass = "standard",
    ) -> tuple[list[bytes], int]:
        """Return the vectors of inputs that came in a body of that size, and how many tokens they are."""
        identity = caller.get()

        def prepare(given: Sequence[str | list[int]]) -> list[Generation]:
            return embed_generations(
                given,
                model,
                tenant=identity.tenant,
                latency_class=latency_class,
                param=param,
                cache_salt=join_salts(identity.cache_salt, ""),
            )

        generations = await off_loop(num_bytes, prepare, inputs)
        vectors = await self._vectors(request_id, generations)
        return vectors, sum(each.num_prompt_tokens for each in generations)

    async def _vectors(self, request_id: str, generations: Sequence[Generation]) -> list[bytes]:
        """Return the vector of each generation, in order; raise the first error, which ends the others."""
        vectors = [b""] * len(generations)
        numbers = iter(range(len(generations)))
        errors: list[BuswayError] = []

        async def work(scope: anyio.CancelScope) -> None:
            for number in numbers:
                end = _End()
                request = Request(f"{request_id}-{number}" if number else request_id, generations[number], end)
                try:
                    await self._intake.run([request], end)
                except BuswayError as error:
                    errors.append(_explain(error, generations[number].model))
                    scope.cancel()
                    return
                vectors[number] = request.vector

        async with anyio.create_task_group() as tasks:
            for _ in range(min(MAX_IN_FLIGHT, len(generations))):
                tasks.start_soon(work, tasks.cancel_scope)
        if errors:
            raise errors[0]
        return vectors


async def _off_loop(show: Callable[[list[bytes]], bytes], vectors: list[bytes]) -> bytes:
    """Show vectors, in a thread if they are many: a number takes 9 bytes of JSON, so that two of 768 reach 12 KiB."""
    return await off_loop(sum(map(len, vectors)), show, vectors)


def _explain(error: BuswayError, model: str) -> BuswayError:
    """Name the model at fault where a worker says that it cannot embed."""
    if isinstance(error, GenerationFailed) and error.worker_code == "invalid_request":
        return InvalidRequest(f"Model {model!r} cannot embed this input: {error}", param="model")
    return error
