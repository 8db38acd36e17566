"""Pure. Bodies and answers of embeddings, and of what is made of them: rerank and score."""

import base64
import math
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bus.errors import InvalidRequest, Malformed
from bus.messages.base import pack_u32
from bus.messages.inference import LatencyClass, Sampling, Stopping
from frontend.model import ServedModel
from frontend.openai.body import NOTHING, BodyDecoder, TokenId, invalid
from frontend.preprocess import check_ids, check_length
from frontend.request import Generation

MAX_INPUTS = 2048
"""Inputs of one request, as OpenAI has it."""
_TOKEN_IDS = Annotated[list[TokenId], Meta(min_length=1)]

Texts = str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/embeddings`; `input` is a text, token ids, or a list of either."""

    model: str = ""
    input: msgspec.Raw
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    """Keep so many of the first components, at length 1 again: for models that are trained for it."""
    user: msgspec.Raw = NOTHING


class EmbeddingsUsage(msgspec.Struct, frozen=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingShown(msgspec.Struct, frozen=True):
    """One vector: numbers, or base64 of packed little-endian float32."""

    embedding: list[float] | str
    index: int
    object: str = "embedding"


class EmbeddingsShown(msgspec.Struct, frozen=True):
    """Answer of `POST /v1/embeddings`."""

    data: list[EmbeddingShown]
    model: str
    usage: EmbeddingsUsage
    object: str = "list"


class DocumentText(msgspec.Struct, frozen=True):
    """A document with a name for its text."""

    text: str


class RerankBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/rerank`, as Cohere and Jina have it."""

    query: str
    documents: Annotated[list[str | DocumentText], Meta(min_length=1, max_length=MAX_INPUTS - 1)]
    model: str = ""
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


class RerankResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One document and how near it is to the query, from -1 to 1."""

    index: int
    relevance_score: float
    document: DocumentText | None = None


class RerankUsage(msgspec.Struct, frozen=True):
    """Tokens of query and documents."""

    total_tokens: int


class RerankShown(msgspec.Struct, frozen=True):
    """Answer of `POST /v1/rerank`: the nearest document first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage


class ScoreBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/score`, as vLLM has it: one text against many, or many against as many."""

    text_1: Texts
    text_2: Texts
    model: str = ""


class ScoreShown(msgspec.Struct, frozen=True):
    """How near two texts are, from -1 to 1."""

    index: int
    score: float
    object: str = "score"


class ScoresShown(msgspec.Struct, frozen=True):
    """Answer of `POST /v1/score`."""

    id: str
    created: int
    model: str
    data: list[ScoreShown]
    usage: EmbeddingsUsage
    object: str = "list"


embeddings_body: BodyDecoder[EmbeddingsBody] = BodyDecoder(EmbeddingsBody)
rerank_body: BodyDecoder[RerankBody] = BodyDecoder(RerankBody)
score_body: BodyDecoder[ScoreBody] = BodyDecoder(ScoreBody)

_inputs: msgspec.json.Decoder[str | list[str | int | list[int]]] = msgspec.json.Decoder(
    str | list[str | TokenId | _TOKEN_IDS]
)


def decode_inputs(raw: msgspec.Raw) -> list[str | list[int]]:
    """Return the inputs, each a text or token ids; raise `InvalidRequest` for any other shape and for too many."""
    try:
        given = _inputs.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(error, "input") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not valid JSON: {error}") from error
    if isinstance(given, str):
        return [given]
    ids = [each for each in given if isinstance(each, int)]
    if ids and len(ids) == len(given):
        return [ids]
    inputs = [each for each in given if not isinstance(each, int)]
    if ids or not inputs:
        what = "mixes token ids with other inputs" if ids else "is an empty list"
        raise InvalidRequest(f"'input' {what}.", param="input")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequest(f"'input' has {len(inputs)} entries; at most {MAX_INPUTS} are taken.", param="input")
    return inputs


def embed_generations(
    inputs: Sequence[str | list[int]],
    model: ServedModel,
    *,
    tenant: str,
    latency_class: LatencyClass,
    param: str,
    cache_salt: str = "",
) -> list[Generation]:
    """Return a generation for each input; raise `InvalidRequest` that names `param`, `PromptTooLong`."""
    generations = []
    for each in inputs:
        if isinstance(each, str):
            prompt = model.tokenizer.encode(each, add_special_tokens=True)
        else:
            check_ids(each, model, param)
            prompt = pack_u32(each)
        if not prompt:
            raise InvalidRequest(f"'{param}' holds an empty text: there is nothing to embed.", param=param)
        check_length(len(prompt) // 4, model.max_model_len, param)
        generations.append(
            Generation(
                model=model.name,
                model_slug=model.slug,
                prompt=prompt,
                sampling=Sampling(),
                stopping=Stopping(max_tokens=1),
                latency_class=latency_class,
                tenant=tenant,
                cache_salt=cache_salt,
                task="embed",
            )
        )
    return generations


def shorten(vector: bytes, dimensions: int | None) -> "array[float]":
    """Return the first components at length 1 (all of them: as they are); raise `InvalidRequest` for too many."""
    values = array("f")
    values.frombytes(vector)
    if dimensions is None or dimensions == len(values):
        return values
    if dimensions > len(values):
        raise InvalidRequest(
            f"Invalid value for 'dimensions': the model's vectors have {len(values)} components.", param="dimensions"
        )
    kept = values[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in kept))
    return array("f", [value / length for value in kept]) if length else kept


def show_embeddings(body: EmbeddingsBody, model: str, vectors: Sequence[bytes], num_tokens: int) -> bytes:
    """Render the answer."""
    is_base64 = body.encoding_format == "base64"
    data = []
    for index, vector in enumerate(vectors):
        values = shorten(vector, body.dimensions)
        shown = base64.b64encode(values.tobytes()).decode() if is_base64 else values.tolist()
        data.append(EmbeddingShown(shown, index))
    return msgspec.json.encode(EmbeddingsShown(data, model, EmbeddingsUsage(num_tokens, num_tokens)))


def show_ranking(body: RerankBody, request_id: str, model: str, vectors: Sequence[bytes], num_tokens: int) -> bytes:
    """Render the documents by their nearness to the query, whose vector is the first; ties in the order given."""
    scores = [cosine(vectors[0], each) for each in vectors[1:]]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    texts = documents(body)
    results = [
        RerankResult(index, scores[index], DocumentText(texts[index]) if body.return_documents else None)
        for index in order
    ]
    return msgspec.json.encode(RerankShown(f"rerank-{request_id}", model, results, RerankUsage(num_tokens)))


def documents(body: RerankBody) -> list[str]:
    """Return the texts of the documents."""
    return [each if isinstance(each, str) else each.text for each in body.documents]


def score_texts(body: ScoreBody) -> tuple[list[str], list[str]]:
    """Return both sides, the one text of a side first; raise `InvalidRequest` where they do not pair."""
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) not in (1, len(second)):
        raise InvalidRequest(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}: send one against many, or as many as many.",
            param="text_1",
        )
    if len(first) + len(second) > MAX_INPUTS:
        raise InvalidRequest(f"More than {MAX_INPUTS} texts in one request.", param="text_2")
    return first, second


def cosine(one: bytes, other: bytes) -> float:
    """Return the cosine of two vectors of length 1; 32-bit rounding may leave a little more than 1: it is cut."""
    a, b = array("f"), array("f")
    a.frombytes(one)
    b.frombytes(other)
    return max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(a, b, strict=True))))
