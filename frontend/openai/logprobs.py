"""Pure. Log-probabilities as OpenAI's two endpoints show them."""

from collections.abc import Sequence

import msgspec

from frontend.pieces import UNKNOWN_LOGPROB, TokenPiece
from frontend.vocabulary import Vocabulary

_json = msgspec.json.encode


class _TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class _Logprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[_TopLogprob]


class _ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[_Logprob]
    refusal: None = None


class _CompletionLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def _shown(vocabulary: Vocabulary, token: int) -> tuple[str, list[int]]:
    raw = vocabulary.raw[token] if token < len(vocabulary) else b""
    return raw.decode("utf-8", "replace"), list(raw)


def chat_logprobs(vocabulary: Vocabulary, pieces: Sequence[TokenPiece]) -> bytes:
    """Render `logprobs` of a chat choice."""
    return _json(_ChatLogprobs(_content(vocabulary, pieces)))


def token_logprobs(vocabulary: Vocabulary, pieces: Sequence[TokenPiece]) -> bytes:
    """Render `logprobs` of a text of the Responses API: the list alone."""
    return _json(_content(vocabulary, pieces))


def _content(vocabulary: Vocabulary, pieces: Sequence[TokenPiece]) -> list[_Logprob]:
    content = []
    for piece in pieces:
        told = piece.logprobs
        top = zip(told.top_ids, told.top_logprobs, strict=False) if told else ()
        content.append(
            _Logprob(
                *_with(_shown(vocabulary, piece.token), told.logprob if told else UNKNOWN_LOGPROB),
                [_TopLogprob(*_with(_shown(vocabulary, id), logprob)) for id, logprob in top],
            )
        )
    return content


def _with(shown: tuple[str, list[int]], logprob: float) -> tuple[str, float, list[int]]:
    return shown[0], max(logprob, UNKNOWN_LOGPROB), shown[1]


def completion_logprobs(vocabulary: Vocabulary, pieces: Sequence[TokenPiece], start: int = 0) -> bytes:
    """Render `logprobs` of a completion choice whose text begins with `start` characters of the prompt.

    A prompt's first token has none: nothing came before it.
    """
    told = [piece.logprobs for piece in pieces]
    unknown = [None if piece.start < 0 else UNKNOWN_LOGPROB for piece in pieces]
    return _json(
        _CompletionLogprobs(
            [_shown(vocabulary, piece.token)[0] for piece in pieces],
            [max(each.logprob, UNKNOWN_LOGPROB) if each else none for each, none in zip(told, unknown, strict=True)],
            [
                {
                    _shown(vocabulary, id)[0]: max(p, UNKNOWN_LOGPROB)
                    for id, p in zip(e.top_ids, e.top_logprobs, strict=False)
                }
                if e
                else (None if none is None else {})
                for e, none in zip(told, unknown, strict=True)
            ],
            [start + piece.start for piece in pieces],
        )
    )
