"""Pure. What Busway asks of an inference engine; each engine is a module or package here, imported only by name."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from bus.messages.fleet import TierRate
from bus.messages.inference import FinishReason, Hints, Sampling, Stopping, Task
from bus.messages.kv import KvEvent
from components.engines.exchange import BlockMemory, Note, ignore_note


class EngineRequest(msgspec.Struct, frozen=True):
    """One sequence to continue. `key` is the worker's own number for it, never used twice."""

    key: int
    prompt: list[int]
    output: list[int]
    """Tokens that earlier attempts produced: computed like a prompt, counted as output."""
    sampling: Sampling
    stopping: Stopping
    eos_token_ids: frozenset[int]
    cache_salt: str = ""
    grammar: str = ""
    """As `GenerateJob.grammar`."""
    task: Task = "generate"
    prompt_logprobs: int | None = None
    """As `GenerateJob.prompt_logprobs`."""
    fill_blocks: int = 0
    """So many of its first full blocks can be had from elsewhere; those that are missing here are asked for (`Fill`).

    None are where every token of the prompt is to be computed, nor after the sequence was preempted.
    """
    only_fill: bool = False
    """Fill, and compute nothing: afterwards the blocks are known here. No step tells of it, and nobody waits for it.

    Its `Fill` comes in any case, with no blocks where all are here, or where there is no room for them.
    """
    hints: Hints = Hints()
    """How long its blocks are worth keeping, for engines with tiers."""
    rank: int = 0
    """Higher goes first among those that wait in the engine: levels of priority and of its latency class."""
    hold: bool = False
    """Keep its full blocks (`Held`) until `Engine.release`, which is then due in any case, after an abort as well."""


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A sequence that ended in this step by itself (aborted ones are not told)."""

    key: int
    reason: FinishReason
    num_tokens: int
    """Output tokens, earlier attempts included."""
    cached_tokens: int
    error: str = ""
    """What is wrong with the request, where "abort" is for good: another attempt would end like this one."""


class Logprobs(msgspec.Struct, frozen=True, gc=False):
    """Log-probabilities of the token of row `row` of the step."""

    row: int
    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class PromptRows(msgspec.Struct, frozen=True, gc=False):
    """Log-probabilities of the tokens of a prompt from position `start` on, at most `MAX_PROMPT_ROWS` of them."""

    key: int
    start: int
    logprobs: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]


class Vector(msgspec.Struct, frozen=True, gc=False):
    """The embedding of a prompt: float32, little-endian, of length 1."""

    key: int
    data: bytes


MAX_PROMPT_ROWS = 256


class StepStats(msgspec.Struct, frozen=True, gc=False):
    """What one step did, for load reports and step-time models."""

    duration_s: float
    prefill_tokens: int
    prefill_requests: int
    decode_requests: int
    kv_tokens: int
    """Context length summed over the decoding sequences."""
    preemptions: int = 0
    prefill_context: int = 0
    """Number of tokens before each of the `prefill_tokens` in its sequence, summed."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one engine step: row i is token `tokens[i]` of sequence `keys[i]`, rows in order.

    The token that ends a sequence, a stop token included, is a row like any other and counts as output; `ended` tells
    the reason. A sequence that the engine had to give up (its values were not finite) ends with "abort" and no row. A
    continued sequence that was complete when it came ends with its reason and no row.
    """

    keys: list[int]
    tokens: list[int]
    ended: list[Ended]
    logprobs: list[Logprobs]
    stats: StepStats
    prompts: list[PromptRows] = []
    """In the order of the positions, and before the first token of their sequence."""
    vectors: list[Vector] = []
    """Each in the step that ends its sequence, which has no row."""
    cached: list[tuple[int, int]] = []
    """Key and `cached_tokens` of sequences whose prompt was completed in this step, if there are any."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed facts of a running engine."""

    name: str
    max_model_len: int
    """Prompt and output tokens together."""
    max_running: int
    """Sequences that can be in a step together."""
    block_size: int
    num_blocks: int
    vocab_size: int


class EngineLoad(msgspec.Struct, frozen=True, gc=False):
    """How busy the engine is now."""

    running: int
    waiting: int
    free_blocks: int
    prefill_tokens: int
    """Prompt tokens accepted and not computed yet."""
    waiting_tokens: int = 0
    """The part of them whose sequences did not start yet."""
    tiers: list[TierRate] = []
    """What loading blocks costs from where they live on that left the device."""


class Engine(Protocol):
    """An engine as the worker sees it. All calls are made in the event loop and return at once."""

    @property
    def spec(self) -> EngineSpec: ...

    def submit(self, request: EngineRequest) -> None:
        """Queue a sequence; raise `PromptTooLong` if it can never fit."""

    @property
    def memory(self) -> BlockMemory | None:
        """Where the blocks are; None: nobody can read or fill them."""

    def abort(self, key: int) -> None:
        """Forget a sequence in any state; unknown keys are no error.

        Its blocks are free before the next step, but for those that it holds and those that are being filled.
        """

    def filled(self, key: int, num_blocks: int) -> None:
        """Answer a `Fill`: the first `num_blocks` of its blocks hold their content, and nobody writes there any more.

        The sequence goes on behind them and computes what is left. Unknown keys are no error.
        """

    def release(self, key: int) -> None:
        """Keep the blocks of a sequence with `hold` no longer; unknown keys are no error."""

    def pin(self, token: int, hashes: Sequence[int]) -> None:
        """Ask for the blocks of the longest beginning of `hashes` that is here (`Pinned`), kept until `unpin`.

        `token` is the caller's own number, of one pin at a time.
        """

    def unpin(self, token: int) -> None:
        """Keep what was pinned under `token` no longer; unknown tokens are no error."""

    async def run(self, on_step: Callable[[Step], None], on_note: Callable[[Note], None] = ignore_note) -> None:
        """Step while there is work and wait while there is none, until cancelled.

        Both are called in the event loop: `on_step` after each step, never for a sequence that was aborted before;
        `on_note` before the step that the note belongs to is told, for fills before it is computed. An aborted
        sequence brings no `Fill` or `Held` any more. Raises `EngineDied` when the engine cannot go on.
        """

    def load(self) -> EngineLoad:
        """Return the present load."""

    def take_events(self) -> list[KvEvent]:
        """Return the block events since the last call, in order."""
