"""I/O (reads a tokenizer once). Which tokens a grammar allows next, for engines that enforce structured output.

The state of a grammar follows from the output tokens alone, so a sequence that moves to another worker goes on there.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bus.errors import InvalidRequest
from components.engines import EngineRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class GrammarState:
    """The grammar of one sequence. Not thread-safe."""

    __slots__ = ("_matcher", "error")

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self.error = ""
        """Why the grammar cannot go on: too complex on its way, most likely."""

    @property
    def is_over(self) -> bool:
        """Nothing can follow but the end."""
        return self._matcher.is_stopped()

    def allowed(self, without: frozenset[int] = frozenset()) -> bytes:
        """Return a bit for each token, the lowest first: whether it may come next. None may after an error.

        Those in `without` may only where nothing else may.
        """
        mask = self._matcher.compute_bitmask()
        self._look()
        if without:
            ends = sum(1 << token for token in without if token < 8 * len(mask))
            others = int.from_bytes(mask, "little") & ~ends
            mask = others.to_bytes(len(mask), "little") if others else mask
        return mask

    def take(self, token: int) -> None:
        """Go on with a token of the sequence; one that does not fit sets `error`."""
        self._matcher.consume_token(token)
        self._look()

    def _look(self) -> None:
        if self._matcher.is_error():
            self.error = self.error or f"the grammar cannot go on: {self._matcher.get_error().splitlines()[0][:300]}"


class Grammars:
    """Makes the states of grammars over one vocabulary. Thread-safe; both calls may take seconds at first."""

    def __init__(self, tokenizer: Path, vocab_size: int) -> None:
        """`tokenizer` is a tokenizer.json; `vocab_size` the width of the logits."""
        self._path = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def open(self, request: EngineRequest) -> GrammarState:
        """Return the state after the request's output; raise `InvalidRequest` for a grammar that cannot be used."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._load(request.eos_token_ids), request.grammar, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(f"the grammar is not sound: {matcher.get_error()[:300]}", param="grammar")
        output = [token for token in request.output if token not in request.eos_token_ids]
        if not matcher.consume_tokens(output):
            raise InvalidRequest("the output so far does not fit the grammar", param="grammar")
        return GrammarState(matcher)

    def _load(self, eos_token_ids: frozenset[int]) -> "LLTokenizer":
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                if not self._path.is_file():
                    raise InvalidRequest("this model has no tokenizer.json, which grammars need", param="grammar")
                ends = sorted(eos_token_ids) or None
                self._tokenizer = LLTokenizer(str(self._path), n_vocab=self._vocab_size, eos_token=ends)
            return self._tokenizer
