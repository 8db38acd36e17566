"""Pure. Text of a sequence together with its log-probabilities, cut off at stop strings: the careful, slower path."""

from collections import deque
from collections.abc import Sequence

import msgspec

from bus.messages.inference import TokenLogprobs
from frontend.detokenize import Detokenizer, StopFinder
from frontend.vocabulary import Vocabulary

UNKNOWN_LOGPROB = -9999.0
"""OpenAI's number for "so unlikely that it is not told"."""


class TokenPiece(msgspec.Struct, frozen=True):
    """One generated token: its place in the text, in characters, and what the engine said about it."""

    token: int
    start: int
    logprobs: TokenLogprobs | None


class Pieces:
    """Collects tokens; `take` hands out the text that may be shown by now, and the tokens that begin in it."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        stops: Sequence[str] = (),
        *,
        shows_stop: bool = False,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """`shows_stop` leaves a stop string in the text, `shown` are special tokens whose text is wanted."""
        self._detokenizer = Detokenizer(vocabulary, shown)
        self._stops = StopFinder(stops, shows_stop=shows_stop) if stops else None
        self._num_tokens = 0
        self._logprobs: dict[int, TokenLogprobs] = {}
        self._waiting: deque[tuple[int, int, int]] = deque()
        """Offset, token and start of tokens that were not handed out."""
        self._text = ""
        self._num_decoded = 0
        self._num_shown = 0

    @property
    def has_stopped(self) -> bool:
        """A stop string is complete: nothing after it will be shown."""
        return self._stops is not None and self._stops.has_stopped

    @property
    def stop_string(self) -> str | None:
        """The stop string that is complete."""
        return None if self._stops is None else self._stops.found

    def push(self, token: int) -> None:
        """Add the next token."""
        if self.has_stopped:
            return
        self._waiting.append((self._num_tokens, token, self._num_decoded))
        self._num_tokens += 1
        self._add(self._detokenizer.push(token))

    def push_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Add what belongs to a token that is not handed out yet; for others it is dropped."""
        if self._waiting and self._waiting[0][0] <= logprobs.offset <= self._waiting[-1][0]:
            self._logprobs[logprobs.offset] = logprobs

    def take(self) -> tuple[str, list[TokenPiece]]:
        """Return the text that may be shown since the last call, and its tokens."""
        text, self._text = self._text, ""
        self._num_shown += len(text)
        return text, self._pop(self._num_shown)

    def finish(self) -> tuple[str, list[TokenPiece]]:
        """Return the rest, when no token follows."""
        self._add(self._detokenizer.finish())
        if self._stops is not None:
            self._text += self._stops.finish()
        text, self._text = self._text, ""
        self._num_shown += len(text)
        return text, self._pop(self._num_shown if self.has_stopped else self._num_decoded + 1)

    def _add(self, text: str) -> None:
        self._num_decoded += len(text)
        self._text += self._stops.push(text) if self._stops is not None else text

    def _pop(self, end: int) -> list[TokenPiece]:
        popped = []
        while self._waiting and self._waiting[0][2] < end:
            offset, token, start = self._waiting.popleft()
            popped.append(TokenPiece(token, start, self._logprobs.pop(offset, None)))
        return popped
