"""Pure. Text of a sequence together with its log-probabilities, cut off at stop strings: the careful, slower path."""

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from bus.messages.base import unpack_u32
from bus.messages.inference import PromptLogprobs, TokenLogprobs
from frontend.detokenize import Detokenizer, StopFinder
from frontend.vocabulary import Vocabulary

UNKNOWN_LOGPROB = -9999.0
"""OpenAI's number for "so unlikely that it is not told"."""


class TokenPiece(msgspec.Struct, frozen=True):
    """One token: its place in the text, in characters, and what the engine said about it."""

    token: int
    start: int
    """Below 0 in an echoed prompt, whose end is at 0."""
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
        min_tokens: int = 0,
        prompt: bytes = b"",
    ) -> None:
        """`shows_stop` leaves a stop string in the text, `shown` are special tokens whose text is wanted; in the first
        `min_tokens` tokens no stop string is looked for. The tokens of `prompt` come before all others."""
        self._vocabulary = vocabulary
        self._prompt = prompt
        self._prompt_logprobs: dict[int, TokenLogprobs] = {}
        self._min_tokens = min_tokens
        self._detokenizer = Detokenizer(vocabulary, shown)
        self._stops = StopFinder(stops, shows_stop=shows_stop) if stops else None
        self.num_tokens = 0
        """Tokens that were taken: none after the one that completes a stop string."""
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
        self._waiting.append((self.num_tokens, token, self._num_decoded))
        self.num_tokens += 1
        self._add(self._detokenizer.push(token))

    def push_logprobs(self, logprobs: TokenLogprobs | PromptLogprobs) -> None:
        """Add what belongs to a token that is not handed out yet; for others it is dropped."""
        if isinstance(logprobs, PromptLogprobs):
            self._push_prompt(logprobs)
            return
        if self._waiting and self._waiting[0][0] <= logprobs.offset <= self._waiting[-1][0]:
            self._logprobs[logprobs.offset] = logprobs

    def _push_prompt(self, rows: PromptLogprobs) -> None:
        """Add what belongs to the prompt; what two attempts tell counts as it was told last."""
        length = len(self._prompt) // 4
        for place, logprob in enumerate(rows.logprobs):
            at = rows.start + place
            if 0 < at < length:
                ids = rows.top_ids[place] if place < len(rows.top_ids) else []
                top = rows.top_logprobs[place] if place < len(rows.top_logprobs) else []
                self._prompt_logprobs[at] = TokenLogprobs(rows.ticket, at, logprob, ids, top)

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
        if self._stops is not None and self.num_tokens > self._min_tokens:
            text = self._stops.push(text)
        self._text += text

    def _pop(self, end: int) -> list[TokenPiece]:
        popped = []
        if self._prompt:
            popped = echo_pieces(self._vocabulary, self._prompt, self._prompt_logprobs)
            self._prompt, self._prompt_logprobs = b"", {}
        while self._waiting and self._waiting[0][2] < end:
            offset, token, start = self._waiting.popleft()
            popped.append(TokenPiece(token, start, self._logprobs.pop(offset, None)))
        return popped


def echo_pieces(vocabulary: Vocabulary, prompt: bytes, logprobs: Mapping[int, TokenLogprobs]) -> list[TokenPiece]:
    """Return the tokens of a packed prompt, placed before 0, with what is known of each by its position."""
    tokens = unpack_u32(prompt).tolist()
    detokenizer = Detokenizer(vocabulary, vocabulary.special)
    starts, length = [], 0
    for token in tokens:
        starts.append(length)
        length += len(detokenizer.push(token))
    length += len(detokenizer.finish())
    return [
        TokenPiece(token, start - length, logprobs.get(at))
        for at, (token, start) in enumerate(zip(tokens, starts, strict=True))
    ]
