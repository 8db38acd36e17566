"""Pure. What the frontend makes of a request, to look at: the prompt, its tokens and blocks, and where it would go."""

from typing import Any

import msgspec

from bus.messages.base import unpack_u32
from bus.messages.inference import Hints, LatencyClass, Sampling, Stopping
from frontend.model import ServedModel
from frontend.request import Generation
from kv_events.hashing import packed_block_hashes, salt_hash

MAX_TOKENS = 131_072
"""Tokens and blocks that are shown of a longer prompt."""


_NO_CANDIDATES = msgspec.Raw(b"[]")


class TokenShown(msgspec.Struct, frozen=True):
    """A token of the prompt; bytes that are no whole characters show as U+FFFD."""

    id: int
    text: str


class BlocksShown(msgspec.Struct, frozen=True):
    """Hashes (hex) of the prompt's full blocks of `block_size` tokens: equal hashes are served from the cache."""

    block_size: int
    hashes: list[str]


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where the request would go at this moment."""

    via: str
    """`router`, or `any`: the lane that all workers of the model share."""
    worker: str | None
    reason: str
    candidates: msgspec.Raw = msgspec.field(default_factory=lambda: _NO_CANDIDATES)
    """What a router says of each worker, the cheapest first; costs in seconds."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /v1/explain`."""

    model: str
    prompt: str
    """As the model gets it: the conversation through the chat template."""
    num_tokens: int
    tokens: list[TokenShown]
    blocks: list[BlocksShown]
    sampling: Sampling
    stopping: Stopping
    stop_strings: tuple[str, ...]
    grammar: str
    latency_class: LatencyClass
    tenant: str
    session: str
    hints: Hints
    destination: Destination


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """A router's answer on `pick.v1.{model}`, as far as it is shown here."""

    worker: str
    cached_tokens: int
    uncached_tokens: int
    cost_s: float
    role: str = "both"
    why_there: str = ""
    candidates: msgspec.Raw = msgspec.field(default_factory=lambda: _NO_CANDIDATES)


_pick = msgspec.json.Decoder(Pick)


def make_explanation(
    generation: Generation, model: ServedModel, block_sizes: list[int], destination: Destination
) -> Explanation:
    """Put together what there is to say."""
    packed = generation.prompt[: MAX_TOKENS * 4]
    raw = model.vocabulary.raw
    pieces = [(token, raw[token] if token < len(raw) else b"") for token in unpack_u32(packed)]
    root = salt_hash(generation.model, generation.cache_salt)
    return Explanation(
        model=generation.model,
        prompt=b"".join(piece for _, piece in pieces).decode("utf-8", "replace"),
        num_tokens=generation.num_prompt_tokens,
        tokens=[TokenShown(token, piece.decode("utf-8", "replace")) for token, piece in pieces],
        blocks=[
            BlocksShown(size, [f"{block:016x}" for block in packed_block_hashes(packed, size, root)])
            for size in block_sizes
        ],
        sampling=generation.sampling,
        stopping=generation.stopping,
        stop_strings=generation.stop_strings,
        grammar=generation.grammar,
        latency_class=generation.latency_class,
        tenant=generation.tenant,
        session=generation.session,
        hints=generation.hints,
        destination=destination,
    )


def question_for(generation: Generation) -> dict[str, Any]:
    """Return what a router is asked on `pick.v1.{model}`."""
    return {
        "model": generation.model,
        "tokens": unpack_u32(generation.prompt).tolist(),
        "cache_salt": generation.cache_salt,
        "tenant": generation.tenant,
        "latency_class": generation.latency_class,
        "session": generation.session,
        "explain": True,
    }


def read_pick(answer: bytes) -> Destination:
    """Say in words what a router answered; raise `msgspec.MsgspecError` for what is no answer."""
    pick = _pick.decode(answer)
    held = f"it holds {pick.cached_tokens} of the prompt's tokens" if pick.cached_tokens else "it holds nothing of it"
    reason = (
        f"costs least: {pick.cost_s * 1000:.1f} ms to the first token, waiting and what others lose included; {held}, "
        f"and computes {pick.uncached_tokens}"
    )
    if pick.why_there:
        part = "computes the prompt for one that decodes" if pick.role == "prefill" else "does all of it"
        reason += f"; it {part}: {pick.why_there}"
    return Destination(via="router", worker=pick.worker, reason=reason, candidates=pick.candidates)


def unrouted(reason: str) -> Destination:
    """Return where a request goes that no router places."""
    return Destination(via="any", worker=None, reason=f"{reason}: whichever worker has a free slot first pulls it")
