"""Pure. What happens to every token of a streamed choice, between the fence and the client's connection.

Plain text, the common case, pays for a table look-up and a concatenation per token; requests with stop strings,
log-probabilities, tools or reasoning, and other APIs, take the careful path of `pieces.py` and a parser.
"""

from collections.abc import Callable

from bus.errors import BuswayError
from bus.messages.inference import FinishReason
from frontend.deltas import CallStart, ChoiceEnd, Delta, DeltaChunks, Parser, ReasoningDelta, TextChunks, TextDelta
from frontend.detokenize import Detokenizer
from frontend.errors import answer_for
from frontend.joint import JointStream
from frontend.pieces import Pieces, TokenPiece
from frontend.request import Logprobs, Usage
from frontend.vocabulary import Vocabulary, escape


class TextStream:
    """Streams plain text."""

    __slots__ = (
        "_chunks",
        "_detokenizer",
        "_escaped",
        "_has_begun",
        "_head",
        "_joint",
        "_number",
        "_send",
        "_tail",
        "_text",
    )

    def __init__(self, vocabulary: Vocabulary, chunks: TextChunks, joint: JointStream, number: int = 0) -> None:
        self._escaped = vocabulary.escaped
        self._detokenizer = Detokenizer(vocabulary)
        self._chunks = chunks
        self._joint = joint
        self._number = number
        self._send = joint.send
        self._head = chunks.head
        self._has_begun = False
        self._tail = chunks.tail
        self._text = b""

    def push(self, token: int) -> None:
        """Take the next token."""
        try:
            piece = self._escaped[token]
        except IndexError:
            return
        if piece is None or self._detokenizer.is_partial:
            piece = escape(self._detokenizer.push(token))
        self._text += piece

    def push_logprobs(self, logprobs: Logprobs) -> None:
        """Drop: they were not asked for."""

    def flush(self) -> bool:
        """Send what was pushed as one chunk."""
        if self._text:
            if self._has_begun:
                self._send(self._head, self._text, self._tail)
            else:
                self._has_begun = True
                self._send(self._chunks.opening() + self._head, self._text, self._tail)
            self._text = b""
        return False

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Send the rest and the end of the choice."""
        text = self._text + escape(self._detokenizer.finish())
        self._text = b""
        rest = self._head + text + self._tail if text else b""
        if not self._has_begun:  # also an empty answer begins with the role
            rest = self._chunks.opening() + rest
        self._joint.close(self._number, rest, self._chunks.closing(ChoiceEnd(reason), usage), usage)

    def fail(self, error: BuswayError) -> None:
        """End with an error."""
        self._text = b""
        self._joint.fail(error, self._chunks.broken(answer_for(error).error))


COUNTED_AT_ONCE = 8 * 2**10
"""Characters of thoughts that are tokenized in one go: a few hundred microseconds."""


class Reader:
    """Reads a choice's text: what a parser makes of it, whether there were tool calls, and how much was thought."""

    __slots__ = ("_count_tokens", "_has_calls", "_num_thought", "_parser", "_thoughts", "pieces")

    def __init__(self, pieces: Pieces, parser: Parser | None, count_tokens: Callable[[str], int]) -> None:
        """Without a parser, text is text. `count_tokens` says how many tokens a text is."""
        self.pieces = pieces
        self._parser = parser
        self._count_tokens = count_tokens
        self._has_calls = False
        self._thoughts = ""
        """Those that were not counted yet."""
        self._num_thought = 0

    def read(self, text: str) -> list[Delta]:
        """Take the next characters."""
        if self._parser is None:
            return [TextDelta(text)] if text else []
        return self._note(self._parser.push(text)) if text else []

    def read_end(self, text: str) -> list[Delta]:
        """Take the last characters."""
        deltas = self.read(text)
        return deltas if self._parser is None else deltas + self._note(self._parser.finish())

    def end(self, reason: FinishReason) -> ChoiceEnd:
        """Say how the choice ended, given how its tokens did."""
        stop = self.pieces.stop_string
        if stop is not None:
            reason = "stop"
        return ChoiceEnd("tool_calls" if self._has_calls and reason == "stop" else reason, stop)

    def count(self, usage: Usage) -> Usage:
        """Return the usage with the tokens of thoughts, and without those after a stop string: how many is chance."""
        if not (self._thoughts or self._num_thought or self.pieces.has_stopped):
            return usage
        num_tokens = self.pieces.num_tokens if self.pieces.has_stopped else usage.output_tokens
        num_thought = self._num_thought + (self._count_tokens(self._thoughts) if self._thoughts else 0)
        return Usage(usage.prompt_tokens, num_tokens, usage.cached_tokens, min(num_tokens, num_thought))

    def _note(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            if isinstance(delta, ReasoningDelta):
                self._thoughts += delta.text
                while len(self._thoughts) >= COUNTED_AT_ONCE:
                    self._count_thoughts()
            elif isinstance(delta, CallStart):
                self._has_calls = True
        return deltas

    def _count_thoughts(self) -> None:
        """Count what came first, up to where a word begins: the same parts however the text came.

        By their text, as they share tokens with the markers around them, and with what follows.
        """
        end = self._thoughts.rfind(" ", 1, COUNTED_AT_ONCE)
        end = COUNTED_AT_ONCE if end < 0 else end
        self._num_thought += self._count_tokens(self._thoughts[:end])
        self._thoughts = self._thoughts[end:]


class DeltaStream:
    """Streams a choice whose text has to be read."""

    __slots__ = ("_chunks", "_held", "_joint", "_number", "_opening", "_pieces", "_reader")

    def __init__(self, reader: Reader, chunks: DeltaChunks, joint: JointStream, number: int = 0) -> None:
        self._pieces = reader.pieces
        self._reader = reader
        self._chunks = chunks
        self._joint = joint
        self._number = number
        self._opening = chunks.opening()
        self._held: list[TokenPiece] = []
        """Tokens of text that the parser holds back."""

    def push(self, token: int) -> None:
        """Take the next token."""
        self._pieces.push(token)

    def push_logprobs(self, logprobs: Logprobs) -> None:
        """Take what belongs to a token."""
        self._pieces.push_logprobs(logprobs)

    def flush(self) -> bool:
        """Send what may be shown; say whether a stop string is complete."""
        text, pieces = self._pieces.take()
        self._held += pieces
        deltas = self._reader.read(text)
        if deltas:
            self._joint.send(self._opening, self._chunks.deltas(deltas, self._held), b"")
            self._opening, self._held = b"", []
        return self._pieces.has_stopped

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Send the rest and the end of the choice."""
        text, pieces = self._pieces.finish()
        self._held += pieces
        deltas = self._reader.read_end(text)
        usage = self._reader.count(usage)
        rest = self._chunks.deltas(deltas, self._held) if deltas or self._held else b""
        last = self._chunks.closing(self._reader.end(reason), usage)
        self._joint.close(self._number, self._opening + rest, last, usage)

    def fail(self, error: BuswayError) -> None:
        """End with an error."""
        self._joint.fail(error, self._chunks.broken(answer_for(error).error))
