"""Pure. One request as its owner knows it: what was asked, which attempt is live, which tokens are there."""

from array import array
from typing import Protocol

import msgspec

from bus.errors import BuswayError
from bus.messages.base import pack_u32
from bus.messages.inference import (
    FinishReason,
    GenerateJob,
    Hints,
    LatencyClass,
    PromptLogprobs,
    Sampling,
    Stopping,
    Task,
    TokenLogprobs,
)


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for, ready for an engine; the same for every attempt."""

    model: str
    model_slug: str
    prompt: bytes
    """Token ids, packed uint32."""
    sampling: Sampling
    stopping: Stopping
    eos_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    shows_stop: bool = False
    """A stop string is a part of the text."""
    latency_class: LatencyClass = "standard"
    tenant: str = "default"
    cache_salt: str = ""
    session: str = ""
    hints: Hints = Hints()
    deadline_at: float | None = None
    """Unix seconds."""
    task: Task = "generate"
    grammar: str = ""
    """As `GenerateJob.grammar`."""
    prompt_logprobs: int | None = None
    shows_tokens: bool = False
    """The client wants the ids of the tokens too."""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt) // 4

    @property
    def needs_pieces(self) -> bool:
        """Whether its output cannot take the path of plain text."""
        return bool(self.stop_strings) or self.sampling.top_logprobs is not None or self.shows_tokens


class Usage(msgspec.Struct, frozen=True):
    """Tokens that one request took."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0
    """Of the output, what the model thought."""


Logprobs = TokenLogprobs | PromptLogprobs


class Output(Protocol):
    """Where the tokens of one request go. None of its methods waits or raises."""

    def push(self, token: int) -> None:
        """Take the next token."""

    def push_logprobs(self, logprobs: Logprobs) -> None:
        """Take what belongs to a token that was pushed, or to the prompt: that comes before any token."""

    def flush(self) -> bool:
        """Show what was pushed; return True when a stop string is complete and no token is wanted any more."""

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Show the rest and end."""

    def fail(self, error: BuswayError) -> None:
        """End without success."""


def _no_tokens() -> "array[int]":
    return array("I")


class Request(msgspec.Struct, eq=False):
    """One request in flight. `now` and `_at` are seconds of one monotonic clock."""

    request_id: str
    generation: Generation
    output: Output
    tokens: "array[int]" = msgspec.field(default_factory=_no_tokens)
    num_tokens: int = 0
    vector: bytes = b""
    """Of an embedding: packed float32, once it is there."""
    attempt: int = 0
    ticket: int = 0
    num_faults: int = 0
    """Attempts that ended through somebody's fault, which may be its own."""
    num_deaths: int = 0
    """Workers that died while they computed its first token of an attempt."""
    addressee: str = ""
    """The worker whose own lane has the present attempt; empty where it went to routers, or to all."""
    is_held: bool = False
    """It waits to be tried again alone (`frontend.suspects`)."""
    worker: str = ""
    """Empty until a worker accepts the present attempt."""
    prefilled_by: str = ""
    """The worker that computed the prompt, where another one goes on."""
    is_live: bool = False
    is_routed: bool = False
    """Whether the present attempt went to the routers."""
    opened_at: float = 0.0
    dispatched_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    suspect_at: float = 0.0
    expires_at: float = float("inf")
    """When its time is over, by the clock of all these."""
    cached_tokens: int = 0
    flush_at: float = 0.0
    """When its output may be flushed again."""

    @property
    def has_token_of_attempt(self) -> bool:
        """Whether the present attempt brought a token."""
        return self.last_token_at > self.dispatched_at

    def job(self, frontend: str, submitted_at: float) -> GenerateJob:
        """Return the message for the present attempt; `submitted_at` is in unix seconds."""
        generation = self.generation
        return GenerateJob(
            request_id=self.request_id,
            attempt=self.attempt,
            frontend=frontend,
            ticket=self.ticket,
            model=generation.model,
            prompt=generation.prompt,
            output=pack_u32(self.tokens) if self.tokens else b"",
            sampling=generation.sampling,
            stopping=generation.stopping,
            latency_class=generation.latency_class,
            tenant=generation.tenant,
            cache_salt=generation.cache_salt,
            session=generation.session,
            hints=generation.hints,
            deadline_at=generation.deadline_at,
            task=generation.task,
            grammar=generation.grammar,
            prompt_logprobs=generation.prompt_logprobs,
            submitted_at=submitted_at,
        )

    def usage(self) -> Usage:
        """Return what it took so far."""
        return Usage(self.generation.num_prompt_tokens, self.num_tokens, self.cached_tokens)

    def ending(self) -> FinishReason | None:
        """Return why the tokens so far are all there will be (the message that said so may be lost), else None.

        No tokens stand for a vector: a worker of an older version, which knows no such task, sends some instead.
        """
        if self.generation.task == "embed":
            return "stop" if self.vector else None
        stopping = self.generation.stopping
        if self.num_tokens and self.num_tokens >= stopping.min_tokens:
            last = self.tokens[-1]
            if last in stopping.stop_token_ids or (not stopping.ignore_eos and last in self.generation.eos_token_ids):
                return "stop"
        return "length" if self.num_tokens >= stopping.max_tokens else None
