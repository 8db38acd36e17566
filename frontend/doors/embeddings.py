"""I/O. The handlers of embeddings, and of rerank and score, which are the cosine of two embeddings."""

import asyncio
import time
from collections.abc import Sequence

import anyio
import msgspec

from bus.errors import BuswayError, InvalidRequest
from bus.messages.inference import FinishReason, LatencyClass
from frontend.auth.identity import caller
from frontend.doors.call import JSON, Call, Reply, ignored_header, while_connected
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

MAX_IN_FLIGHT = 64
"""Inputs of one request that are computed at a time: others get their turn between them."""


class _End:
    """The output of a request whose answer is a vector: only its end counts."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.error: BuswayError | None = None

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
        self.done.set()

    def fail(self, error: BuswayError) -> None:
        """End without a vector."""
        self.error = error
        self.done.set()


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
        data = await call.read_json(self._intake.config.max_body_bytes)
        body, ignored = await self._intake.decode(embeddings_body, data)
        answer = await while_connected(call, lambda: self.run_detached(call.request_id, len(data), body))
        return None if answer is None else Reply(answer, headers=(*JSON, *ignored_header(ignored)))

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

        def prepare(given: EmbeddingsBody) -> list[Generation]:
            inputs = decode_inputs(given.input)
            return embed_generations(
                inputs,
                model,
                tenant=caller.get().tenant,
                latency_class=latency_class,
                param="input",
                cache_salt=join_salts(caller.get().cache_salt, ""),
            )

        generations = await off_loop(num_bytes, prepare, body)
        vectors = await self._vectors(request_id, generations)
        num_tokens = sum(each.num_prompt_tokens for each in generations)
        # A number takes 9 bytes of JSON: about 12 KiB are reached by two vectors of 768.
        num_answer_bytes = sum(map(len, vectors))
        return await off_loop(
            num_answer_bytes, lambda made: show_embeddings(body, model.name, made, num_tokens), vectors
        )

    async def rerank(self, call: Call) -> Reply | None:
        """Order documents by the cosine of their embeddings with that of the query."""
        data = await call.read_json(self._intake.config.max_body_bytes)
        body, ignored = await self._intake.decode(rerank_body, data)
        model = self._intake.find_model(body.model)
        texts = [body.query, *documents(body)]
        embedded = await while_connected(call, lambda: self._embed_texts(call.request_id, model, texts, "documents"))
        if embedded is None:
            return None
        vectors, num_tokens = embedded
        answer = await off_loop(
            sum(map(len, vectors)),
            lambda made: show_ranking(body, call.request_id, model.name, made, num_tokens),
            vectors,
        )
        return Reply(answer, headers=(*JSON, *ignored_header(ignored)))

    async def score(self, call: Call) -> Reply | None:
        """Score pairs of texts by the cosine of their embeddings."""
        data = await call.read_json(self._intake.config.max_body_bytes)
        body, ignored = await self._intake.decode(score_body, data)
        model = self._intake.find_model(body.model)
        first, second = score_texts(body)
        texts = [*first, *second]
        embedded = await while_connected(call, lambda: self._embed_texts(call.request_id, model, texts, "text_2"))
        if embedded is None:
            return None
        vectors, num_tokens = embedded

        def show(made: Sequence[bytes]) -> bytes:
            ones, others = made[: len(first)], made[len(first) :]
            pairs = zip(ones if len(ones) == len(others) else [*ones] * len(others), others, strict=True)
            shown = [ScoreShown(index, cosine(one, other)) for index, (one, other) in enumerate(pairs)]
            usage = EmbeddingsUsage(num_tokens, num_tokens)
            score_id = f"score-{call.request_id}"
            return msgspec.json.encode(ScoresShown(score_id, int(time.time()), model.name, shown, usage))

        answer = await off_loop(sum(map(len, vectors)), show, vectors)
        return Reply(answer, headers=(*JSON, *ignored_header(ignored)))

    async def _embed_texts(
        self, request_id: str, model: ServedModel, texts: Sequence[str], param: str
    ) -> tuple[list[bytes], int]:
        def prepare(given: Sequence[str]) -> list[Generation]:
            return embed_generations(
                given,
                model,
                tenant=caller.get().tenant,
                latency_class="standard",
                param=param,
                cache_salt=join_salts(caller.get().cache_salt, ""),
            )

        generations = await off_loop(sum(map(len, texts)), prepare, texts)
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


def _explain(error: BuswayError, model: str) -> BuswayError:
    """Name the model at fault where a worker says that it cannot embed."""
    if isinstance(error, GenerationFailed) and error.worker_code == "invalid_request":
        return InvalidRequest(f"Model {model!r} cannot embed this input: {error}", param="model")
    return error
