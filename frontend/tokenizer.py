"""Pure. Text to token ids: fastokens, or Hugging Face's tokenizers for a file that fastokens refuses."""

from typing import Any, Protocol

import fastokens

from bus.errors import InvalidRequest, Malformed
from bus.messages.base import pack_u32

_SEGMENT_CACHE_BYTES = 16 * 2**20
"""Segments between special tokens that fastokens remembers: later turns of a chat repeat earlier ones."""
_PROBE = "Hello, world! 你好 \U0001f600 don't  stop\n\n\t123456 <b>é</b>"


class Tokenizer(Protocol):
    """Encodes prompts. Both implementations may be called from any thread."""

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        """Return token ids as packed uint32; raise `InvalidRequest` for text that is no Unicode (lone surrogates)."""


class _Fast:
    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer: Any = fastokens.Tokenizer.from_json_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.enable_segment_cache(_SEGMENT_CACHE_BYTES)

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        try:
            ids: bytes = self._tokenizer.encode_batch_flat([text], add_special_tokens)[0]
        except UnicodeEncodeError as error:
            raise _no_unicode(error) from error
        return ids


class _HuggingFace:
    def __init__(self, tokenizer_json: str) -> None:
        import tokenizers

        self._tokenizer: Any = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        try:
            return pack_u32(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise _no_unicode(error) from error


def _no_unicode(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"The prompt is not valid Unicode text: {error}")


def load_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Build the tokenizer of a tokenizer.json; raise `Malformed` when no library here takes the file."""
    try:
        text = tokenizer_json.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"tokenizer.json is not UTF-8: {error}") from error
    try:
        fast = _Fast(text)
        fast.encode(_PROBE, add_special_tokens=True)
        return fast
    except Exception as refusal:
        # fastokens raises ValueError for what it does not support, and anything at all for broken files.
        return _load_fallback(text, refusal)


def _load_fallback(text: str, refusal: Exception) -> Tokenizer:
    try:
        return _HuggingFace(text)
    except ImportError as error:
        raise Malformed(
            f"fastokens refuses this tokenizer.json ({refusal}); the tokenizers package may take it"
        ) from error
    except Exception as error:
        raise Malformed(f"tokenizer.json: {error}") from error
