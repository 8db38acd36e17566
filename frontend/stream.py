"""Pure. What happens to every token of a request, between the fence and the client's connection.

Plain text, the common case, pays for a table look-up and a concatenation per token; requests with stop strings or
log-probabilities take the careful path of `pieces.py`.
"""

from collections.abc import Sequence
from typing import Protocol

from bus.errors import BuswayError
from bus.messages.inference import FinishReason, TokenLogprobs
from frontend.detokenize import Detokenizer
from frontend.errors import answer_for
from frontend.openai.chunks import Chunks
from frontend.pieces import Pieces, TokenPiece
from frontend.request import Generation, Output, Usage
from frontend.vocabulary import Vocabulary, escape


class Sink(Protocol):
    """Where rendered bytes leave: a connection or a subject. Nothing here waits; a sink that lost its client drops."""

    def send(self, head: bytes, text: bytes, tail: bytes) -> None:
        """Send three parts as one piece."""

    def close(self, rest: bytes, last: bytes) -> None:
        """Send two last pieces, the first of which may be empty, and end."""

    def fail(self, error: BuswayError, last: bytes) -> None:
        """End: with `last` when something was sent before, else with `error` alone."""


class Answer(Protocol):
    """How a whole answer is written."""

    def render(self, text: str, pieces: Sequence[TokenPiece], reason: FinishReason, usage: Usage) -> bytes:
        """Render it; `pieces` are there if log-probabilities were asked for."""


class TextStream:
    """Streams plain text."""

    __slots__ = ("_chunks", "_detokenizer", "_escaped", "_head", "_next_head", "_sink", "_tail", "_text")

    def __init__(self, vocabulary: Vocabulary, chunks: Chunks, sink: Sink) -> None:
        self._escaped = vocabulary.escaped
        self._detokenizer = Detokenizer(vocabulary)
        self._chunks = chunks
        self._sink = sink
        self._head = chunks.opening + chunks.head
        self._next_head = chunks.head
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

    def push_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Drop: they were not asked for."""

    def flush(self) -> bool:
        """Send what was pushed as one chunk."""
        if self._text:
            self._sink.send(self._head, self._text, self._tail)
            self._head = self._next_head
            self._text = b""
        return False

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Send the rest and the closing chunks."""
        text = self._text + escape(self._detokenizer.finish())
        self._text = b""
        # Also an empty answer begins with the role.
        rest = self._head + text + self._tail if text else self._head.removesuffix(self._next_head)
        self._sink.close(rest, self._chunks.closing(reason, usage))

    def fail(self, error: BuswayError) -> None:
        """End with an error."""
        self._text = b""
        self._sink.fail(error, self._chunks.broken(answer_for(error).error))


class PieceStream:
    """Streams text that has stop strings or log-probabilities."""

    __slots__ = ("_chunks", "_opening", "_pieces", "_sink")

    def __init__(self, pieces: Pieces, chunks: Chunks, sink: Sink) -> None:
        self._pieces = pieces
        self._chunks = chunks
        self._sink = sink
        self._opening = chunks.opening

    def push(self, token: int) -> None:
        """Take the next token."""
        self._pieces.push(token)

    def push_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Take what belongs to a token."""
        self._pieces.push_logprobs(logprobs)

    def flush(self) -> bool:
        """Send what may be shown; say whether a stop string is complete."""
        text, pieces = self._pieces.take()
        if text or pieces:
            self._sink.send(self._opening, self._chunks.piece(text, pieces), b"")
            self._opening = b""
        return self._pieces.has_stopped

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Send the rest and the closing chunks."""
        text, pieces = self._pieces.finish()
        rest = self._chunks.piece(text, pieces) if text or pieces else b""
        last = self._chunks.closing("stop" if self._pieces.has_stopped else reason, usage)
        self._sink.close(self._opening + rest, last)

    def fail(self, error: BuswayError) -> None:
        """End with an error."""
        self._sink.fail(error, self._chunks.broken(answer_for(error).error))


class TextAnswer:
    """Collects plain text and answers once."""

    __slots__ = ("_answer", "_sink", "_tokens", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, answer: Answer, sink: Sink) -> None:
        self._vocabulary = vocabulary
        self._answer = answer
        self._sink = sink
        self._tokens: list[int] = []

    def push(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)

    def push_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Drop: they were not asked for."""

    def flush(self) -> bool:
        """Show nothing yet."""
        return False

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Answer with the whole text."""
        self._sink.close(b"", self._answer.render(self._vocabulary.decode(self._tokens), (), reason, usage))

    def fail(self, error: BuswayError) -> None:
        """Answer with an error."""
        self._sink.fail(error, b"")


class PieceAnswer:
    """Collects text that has stop strings or log-probabilities, and answers once."""

    __slots__ = ("_answer", "_pieces", "_sink")

    def __init__(self, pieces: Pieces, answer: Answer, sink: Sink) -> None:
        self._pieces = pieces
        self._answer = answer
        self._sink = sink

    def push(self, token: int) -> None:
        """Take the next token."""
        self._pieces.push(token)

    def push_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Take what belongs to a token."""
        self._pieces.push_logprobs(logprobs)

    def flush(self) -> bool:
        """Say whether a stop string is complete."""
        return self._pieces.has_stopped

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Answer with the text before the stop string, or all of it."""
        text, pieces = self._pieces.finish()
        last = "stop" if self._pieces.has_stopped else reason
        self._sink.close(b"", self._answer.render(text, pieces, last, usage))

    def fail(self, error: BuswayError) -> None:
        """Answer with an error."""
        self._sink.fail(error, b"")


def stream_to(sink: Sink, chunks: Chunks, generation: Generation, vocabulary: Vocabulary) -> Output:
    """Return the cheapest output that streams this generation."""
    if generation.needs_pieces:
        return PieceStream(Pieces(vocabulary, generation.stop_strings), chunks, sink)
    return TextStream(vocabulary, chunks, sink)


def answer_to(sink: Sink, answer: Answer, generation: Generation, vocabulary: Vocabulary) -> Output:
    """Return the cheapest output that answers this generation in one piece."""
    if generation.needs_pieces:
        return PieceAnswer(Pieces(vocabulary, generation.stop_strings), answer, sink)
    return TextAnswer(vocabulary, answer, sink)
