"""Pure. A gateway's question which worker to take, and the answer."""

from array import array
from typing import Annotated

import msgspec
from msgspec import Meta

from bus.codec import Codec, codec
from bus.errors import InvalidRequest, Malformed, NoWorker, UnknownModel
from bus.messages.base import pack_u32
from bus.messages.inference import LatencyClass, Role
from components.router.pool import Candidate, Pool
from components.router.request import Request, hash_chains
from kv_events.hashing import salt_hash

MAX_BODY_BYTES = 8 * 2**20
MAX_TOKENS = 1_048_576
MAX_CANDIDATES = 64

TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
BlockHash = Annotated[int, Meta(ge=0)]


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which worker for this prompt? Either `tokens`, or `block_hashes` (chained, of `num_tokens` tokens)."""

    model: str = ""
    """Needed over HTTP; over NATS the subject says it, and this is the salt of the hashes."""
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)] = []
    block_hashes: Annotated[list[BlockHash], Meta(max_length=MAX_TOKENS)] = []
    num_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    cache_salt: str = ""
    tenant: str = "default"
    latency_class: LatencyClass = "standard"
    session: str = ""
    request_id: str = ""
    reserve: bool = False
    """Account the request: others are sent elsewhere until the worker's own reports count it."""
    explain: bool = False
    """Tell of the other workers too."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The worker where the prompt costs least at present."""

    worker: str
    cached_tokens: int
    uncached_tokens: int
    cost_s: float
    """Estimated time to the first token, with what it costs others."""
    role: Role
    """`prefill`: this worker computes the prompt only, and hands it over to one that decodes."""
    why_there: str
    """Why the prompt is computed by a worker of that role; empty where there is no choice."""
    reserved: bool
    candidates: list[Candidate] | msgspec.UnsetType = msgspec.UNSET
    """If asked to explain: the cheapest workers, at most `MAX_CANDIDATES`."""


_questions: Codec[Question] = codec(Question)


def read_question(body: bytes) -> Question:
    """Decode JSON; raise `Malformed` or `InvalidRequest`."""
    if len(body) > MAX_BODY_BYTES:
        raise Malformed(f"the question is longer than {MAX_BODY_BYTES} bytes")
    question = _questions.decode_json(body)
    if bool(question.tokens) == bool(question.block_hashes):
        raise InvalidRequest("give either tokens or block_hashes", param="tokens")
    if max(question.block_hashes, default=0) >= 2**64:
        raise InvalidRequest("a block hash is below 2**64", param="block_hashes")
    if question.block_hashes and not question.num_tokens:
        raise InvalidRequest("block_hashes need num_tokens, the length of the prompt", param="num_tokens")
    if question.reserve and not question.request_id:
        raise InvalidRequest("a reservation needs a request_id", param="request_id")
    return question


def answer(question: Question, pool: Pool | None, now: float) -> Answer:
    """Choose, and account the request if it is to be reserved; raise `UnknownModel` or `NoWorker`."""
    if pool is None:
        raise UnknownModel(f"no worker serves {question.model[:80]!r}")
    sizes = pool.block_sizes()
    if question.tokens:
        root = salt_hash(question.model, question.cache_salt)
        chains = hash_chains(pack_u32(question.tokens), root, sizes)
    else:
        chains = {size: array("Q", question.block_hashes[: (question.num_tokens - 1) // size]) for size in sizes}
    request = Request(
        key=question.request_id,
        tenant=question.tenant,
        latency_class=question.latency_class,
        session=question.session,
        num_tokens=len(question.tokens) or question.num_tokens,
        chains=chains,
    )
    choice = pool.choose(request, now)
    if choice is None:
        raise NoWorker("no worker of this model is there at present")
    candidates = pool.candidates(request, now)[:MAX_CANDIDATES] if question.explain else msgspec.UNSET
    if question.reserve:
        pool.reserve(request, choice, None, now)
    return Answer(
        worker=choice.worker,
        cached_tokens=request.num_tokens - choice.uncached_tokens,
        uncached_tokens=choice.uncached_tokens,
        cost_s=round(choice.cost_s, 6),
        role=choice.role,
        why_there=choice.reason,
        reserved=question.reserve,
        candidates=candidates,
    )
