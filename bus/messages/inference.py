"""Pure. What travels between frontends and workers: jobs, steps, cancellations, usage."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bus.messages.base import Fact, Hot
from bus.messages.transfer import Handover

LatencyClass = Literal["interactive", "standard", "batch"]
Role = Literal["encode", "prefill", "decode", "both"]
FinishReason = Literal["stop", "length", "abort"]

Task = Literal["generate", "embed"]
"""`embed`: no token is generated; the answer is one vector, the prompt's, and then the end."""
MAX_GRAMMAR = 512 * 2**10

LATENCY_CLASSES: tuple[LatencyClass, ...] = ("interactive", "standard", "batch")

Ticket = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
NumTokens = Annotated[int, Meta(ge=0, le=2**40)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the next token is chosen; the defaults are plain sampling at temperature 1.

    The token at output position `offset` depends only on the logits and on (seed, offset), so
    that a moved request goes on as it would have gone on where it was.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
    """0 is greedy."""
    top_p: Probability = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31)] = 0
    """0 keeps all tokens."""
    min_p: Probability = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    logit_bias: dict[int, float] = {}
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """None: no logprobs; 0: of the chosen token only; n: also of the n likeliest tokens."""


class Stopping(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """When a sequence ends. Stop strings are the frontend's business: engines see token ids."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    min_tokens: Annotated[int, Meta(ge=0, le=2**31)] = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False


class Hints(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an agent knows about its request; none of it changes the answer."""

    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    """Higher goes first within its latency class and tenant."""
    expected_output_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    pin_ttl_s: Annotated[float, Meta(ge=0.0, le=7 * 86_400)] | None = None
    """Keep the prefix of this request in some tier for so long; None: as long as it happens to stay."""


class GenerateJob(Fact, frozen=True, kw_only=True, tag="generate_job"):
    """One attempt at one sequence, from its owner (a frontend) to a worker.

    `ticket` is unique among all attempts of all requests of that frontend's life, so a token that
    carries it can belong to no other attempt.
    """

    request_id: str
    attempt: Annotated[int, Meta(ge=0, le=1000)] = 0
    frontend: str
    ticket: Ticket
    model: str
    prompt: bytes
    """Token ids, little-endian uint32."""
    output: bytes = b""
    """Tokens that earlier attempts produced, as `prompt`; the next token has offset len / 4."""
    sampling: Sampling = Sampling()
    stopping: Stopping
    latency_class: LatencyClass = "standard"
    tenant: str = "default"
    cache_salt: str = ""
    submitted_at: float = 0.0
    """Unix seconds."""
    deadline_at: float | None = None
    session: str = ""
    """What belongs together (a conversation, an agent's run) as far as the client said so."""
    hints: Hints = Hints()
    task: Task = "generate"
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR)] = ""
    """What the output must match, as a grammar of llguidance (JSON `{"grammars": [...]}`); empty: anything."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """As `Sampling.top_logprobs`, for the tokens of the prompt."""
    handover: Handover | None = None
    """The job was prefilled: the last token of `output` is the only one whose keys and values are nowhere."""


MAX_JOB_AGE_S = 660.0
"""No stream keeps a job for so long, so that one that looks older was sent by another clock."""
MAX_SKEW_S = 5.0


def deadline_by_clock(job: GenerateJob, now: float) -> float | None:
    """Return when the job's time is over by the clock that says `now` (unix seconds), None if it has all the time.

    Where the clocks of owner and worker cannot both be right, the time that was left when it was sent is what counts.
    """
    if job.deadline_at is None or not job.submitted_at or -MAX_SKEW_S < now - job.submitted_at < MAX_JOB_AGE_S:
        return job.deadline_at
    return now + job.deadline_at - job.submitted_at


class Accepted(Hot, frozen=True):
    """The worker took the job into its engine; told once more when its prompt is computed, if some of it was cached."""

    ticket: int
    cached_tokens: int = 0
    source: str = ""
    """The worker from which it took the job over, prefilled; from then on the ticket is this worker's."""


class Finished(Hot, frozen=True):
    """A sequence ended by itself after `num_tokens` output tokens, earlier attempts included."""

    ticket: int
    num_tokens: int
    reason: FinishReason
    cached_tokens: int = 0


class Failed(Hot, frozen=True):
    """The worker gives the attempt up; `is_retryable` says whether another worker may do better."""

    ticket: int
    code: str
    message: str
    is_retryable: bool
    retry_after_s: float | None = None
    """When the owner's client may try again; None: nothing is known."""


class TokenLogprobs(Hot, frozen=True):
    """Log-probabilities of one sampled token and of the likeliest ones, likeliest first."""

    ticket: int
    offset: int
    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class PromptLogprobs(Hot, frozen=True):
    """Log-probabilities of prompt tokens from position `start` on; position 0 has none and is never told.

    Rows are in order and come before the first output token of the ticket.
    """

    ticket: int
    start: int
    logprobs: list[float]
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []


class Embedding(Hot, frozen=True):
    """The vector of a prompt: float32, little-endian, of length 1 in the Euclidean norm."""

    ticket: int
    vector: bytes


class StepBatch(Hot, frozen=True):
    """All that one engine step of one worker, or a few fast ones, bring to one frontend.

    `tickets`, `offsets` and `tokens` are columns of equal length (little-endian uint32): row i is
    one token of `tickets[i]` at output position `offsets[i]`. Rows of a ticket are in order, and
    they come before its entry in `finished`.
    """

    worker: str
    seq: int
    """Number of this batch between this worker and this frontend, from 0."""
    tickets: bytes = b""
    offsets: bytes = b""
    tokens: bytes = b""
    accepted: list[Accepted] = []
    finished: list[Finished] = []
    failed: list[Failed] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[PromptLogprobs] = []
    embeddings: list[Embedding] = []


class Cancel(Fact, frozen=True, kw_only=True, tag="cancel"):
    """Stop working on these tickets of this frontend; unknown ones are ignored."""

    frontend: str
    tickets: bytes
    """Little-endian uint32."""


class Resume(Fact, frozen=True, kw_only=True, tag="resume"):
    """Send this frontend its step batches again from number `seq` on: they were lost on the way.

    A worker that does not have them any more says nothing; it keeps those of the last moment only.
    """

    frontend: str
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Drain(Fact, frozen=True, kw_only=True, tag="drain"):
    """Take no more jobs, finish what runs within `grace_s`, hand back the rest, and end."""

    grace_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] | None = None
    """None: as long as the worker's configuration says."""


class SetRoles(Fact, frozen=True, kw_only=True, tag="set_roles"):
    """Serve these roles from now on: pull from their lanes and no others, and finish what runs.

    Answered with the same message once that is so and the worker's card says it.
    """

    roles: Annotated[list[Role], Meta(min_length=1, max_length=4)]


Command = Cancel | Resume | Drain | SetRoles


class RequestUsage(Fact, frozen=True, kw_only=True, tag="request_usage"):
    """What one finished request used, told once by its owner."""

    request_id: str
    model: str
    tenant: str
    prompt_tokens: NumTokens
    output_tokens: NumTokens
    cached_tokens: NumTokens = 0
    finish_reason: str
    finished_at: float
    """Unix seconds."""


class UsageBatch(Fact, frozen=True, kw_only=True, tag="usage_batch"):
    """Requests of one tenant and one model that ended within a moment."""

    tenant: str
    requests: list[RequestUsage]
