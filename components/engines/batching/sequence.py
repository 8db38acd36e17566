"""Pure. One sequence on its way through the engine: its tokens, how far they are computed, when it ends."""

from array import array

from bus.messages.inference import FinishReason
from components.engines import EngineRequest
from components.engines.batching.features import features_of, has_penalties
from components.engines.batching.history import TokenHistory
from components.engines.grammar import GrammarState
from kv_events.hashing import block_hashes, salt_hash


class Sequence:
    """Prompt and output tokens of one request, and the blocks that hold their keys and values.

    The first `num_computed` tokens are in `blocks`, of which the pool knows the first `num_stored` by hash.
    """

    __slots__ = (
        "_hashes",
        "_root",
        "_stop_ids",
        "blocks",
        "cached_tokens",
        "features",
        "grammar",
        "history",
        "is_held",
        "key",
        "max_length",
        "num_computed",
        "num_prompt",
        "num_stored",
        "num_to_fill",
        "request",
        "tokens",
        "turn",
        "was_admitted",
    )

    def __init__(
        self, request: EngineRequest, *, model: str, max_model_len: int, grammar: GrammarState | None = None
    ) -> None:
        """`grammar` is in the state after the request's output."""
        stopping = request.stopping
        self.key = request.key
        self.request = request
        self.tokens = request.prompt + request.output
        self.num_prompt = len(request.prompt)
        self.max_length = min(self.num_prompt + stopping.max_tokens, max_model_len)
        self.num_computed = 0
        self.num_stored = 0
        self.num_to_fill = 0
        """Of its first blocks, known ones included, so many will be there once those that are missing were filled."""
        self.blocks = array("q")
        self.cached_tokens = 0
        """Prompt tokens that were found in the prefix cache when the sequence was first admitted."""
        self.was_admitted = False
        self.turn = 0.0
        """Place among those that wait: the smallest goes first."""
        self.is_held = request.hold
        self.history = TokenHistory(request.prompt, request.output) if has_penalties(request.sampling) else None
        self._stop_ids = frozenset(stopping.stop_token_ids) | (
            frozenset() if stopping.ignore_eos else request.eos_token_ids
        )
        self.grammar = grammar
        self.features = self._features()
        """What it asks of the sampler for its next token."""
        self._root = salt_hash(model, request.cache_salt)
        self._hashes: list[int] = []

    @property
    def is_embedding(self) -> bool:
        """It wants the vector of its prompt and no token."""
        return self.request.task == "embed"

    @property
    def needs_whole_prompt(self) -> bool:
        """Every token of the prompt is to be computed, cached or not: something is told of each, before any output."""
        return self.request.prompt_logprobs is not None and self.num_output == 0

    @property
    def num_output(self) -> int:
        """Output tokens, those of earlier attempts included: the offset of the next one."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 means that the sequence is decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def banned_ids(self) -> frozenset[int]:
        """Return the tokens that may not come now, because the sequence is shorter than `min_tokens`.

        They may where a grammar allows nothing else.
        """
        return self._stop_ids if self.num_output < self.request.stopping.min_tokens else frozenset()

    def append(self, token: int) -> FinishReason | None:
        """Add a sampled token; return why the sequence ends with it, if it does."""
        self.tokens.append(token)
        if self.history is not None:
            self.history.add(token)
        if self.num_output == self.request.stopping.min_tokens:
            self.features = self._features()
        if self.grammar is not None and token not in self._stop_ids:
            self.grammar.take(token)
        return self.finish_reason()

    def finish_reason(self) -> FinishReason | None:
        """Say why the sequence is complete as it stands, or `None` when it goes on."""
        if self.num_output > 0 and self.tokens[-1] in self._stop_ids:
            return "stop"
        if self.grammar is not None:
            if self.grammar.error:
                return "abort"
            if self.grammar.is_over:
                return "stop"
        return "length" if len(self.tokens) >= self.max_length else None

    def _features(self) -> int:
        is_restricted = self.grammar is not None or bool(self.banned_ids)
        return features_of(self.request.sampling, is_restricted=is_restricted)

    def hashes(self, num_blocks: int, block_size: int) -> list[int]:
        """Return the hashes of the first `num_blocks` blocks, which are full; each is computed once."""
        known = len(self._hashes)
        if known < num_blocks:
            tokens = self.tokens[known * block_size : num_blocks * block_size]
            self._hashes += block_hashes(tokens, block_size, self._hashes[-1] if known else self._root)
        return self._hashes[:num_blocks]

    def forget_computed(self) -> None:
        """Start again from the first token, for recomputation elsewhere in the cache."""
        self.num_computed = self.num_stored = 0
        self.blocks = array("q")
