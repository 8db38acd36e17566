"""Pure. What each token id is as text: raw bytes, and ready-made pieces of a JSON string."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bus.errors import Malformed
from bus.messages.base import unpack_u32

_MAX_TOKEN_ID = 2**22
"""Ids above that are a broken file: the table is a list, one entry an id."""

TokenId = Annotated[int, Meta(ge=0, lt=_MAX_TOKEN_ID)]


class _AddedToken(msgspec.Struct):
    id: TokenId
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, TokenId] | list[tuple[str, float]]


class _Decoder(msgspec.Struct):
    type: str = ""
    decoders: "list[_Decoder]" = []
    pattern: dict[str, str] = {}
    content: str = ""
    replacement: str = "▁"


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    decoder: _Decoder | None = None


_file = msgspec.json.Decoder(_TokenizerFile)


class Vocabulary:
    """The text of tokens, by id. Ids that the tokenizer does not know are empty."""

    def __init__(
        self, pieces: Mapping[int, bytes], special: Iterable[int], markers: Mapping[str, int] | None = None
    ) -> None:
        size = max(pieces, default=-1) + 1
        self.special = frozenset(special)
        self.markers = dict(markers or {})
        """Texts that are one token which no other tokens can write, as far as grammars go."""
        self.raw: list[bytes] = [b""] * size
        """Bytes of each token; they need not be whole characters."""
        self.text: list[bytes | None] = [b""] * size
        """What a stream shows of each token: UTF-8, nothing for special tokens, None where the bytes are no whole
        characters and an incremental decoder must join them with their neighbours."""
        self.escaped: list[bytes | None] = [b""] * size
        """As `text`, escaped for the inside of a JSON string."""
        for token, piece in pieces.items():
            self.raw[token] = piece
            if token in self.special:
                continue
            try:
                text = piece.decode()
            except UnicodeDecodeError:
                self.text[token] = self.escaped[token] = None
                continue
            escaped = escape(text)
            self.text[token] = piece
            self.escaped[token] = piece if escaped == piece else escaped

    def __len__(self) -> int:
        return len(self.raw)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of a whole sequence, special tokens left out, broken characters as U+FFFD."""
        raw, size, special = self.raw, len(self.raw), self.special
        shown = (raw[token] for token in tokens if token < size and token not in special)
        return b"".join(shown).decode("utf-8", "replace")

    def decode_all(self, packed: bytes) -> str:
        """Return the text of packed token ids, special tokens included."""
        raw, size = self.raw, len(self.raw)
        return b"".join([raw[token] for token in unpack_u32(packed) if token < size]).decode("utf-8", "replace")


def escape(text: str) -> bytes:
    """Render `text` as the inside of a JSON string."""
    return msgspec.json.encode(text)[1:-1]


def read_vocabulary(tokenizer_json: bytes, eos_token_ids: Iterable[int] = ()) -> Vocabulary:
    """Build the table from the bytes of a tokenizer.json; raise `Malformed` for files of another kind.

    `eos_token_ids` are never shown, whether the file calls them special or not.
    """
    try:
        file = _file.decode(tokenizer_json)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not a tokenizer.json: {error}") from error
    to_bytes = _piece_reader(file.decoder)
    vocab = file.model.vocab
    named = vocab.items() if isinstance(vocab, dict) else ((entry[0], id) for id, entry in enumerate(vocab))
    pieces = {id: to_bytes(piece) for piece, id in named}
    pieces |= {added.id: added.content.encode() for added in file.added_tokens}
    special = {added.id for added in file.added_tokens if added.special}
    markers = {added.content: added.id for added in file.added_tokens if added.special or _is_tag(added.content)}
    return Vocabulary(pieces, special | set(eos_token_ids), markers)


def _is_tag(content: str) -> bool:
    """Whether llguidance takes an added token for special, whatever the tokenizer says."""
    return len(content) > 2 and content.startswith("<") and content.endswith(">")


def _piece_reader(decoder: _Decoder | None) -> Callable[[str], bytes]:
    """Return how a vocabulary entry becomes bytes, as the file's decoder would have it."""
    steps = _flatten(decoder)
    kinds = {step.type for step in steps}
    if "ByteLevel" in kinds:
        return _read_byte_level
    if not kinds or kinds - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise Malformed(f"tokenizer.json: no way to decode {', '.join(sorted(kinds)) or 'without a decoder'}")
    # `Strip` takes the space before a text's first word. What a model generates goes on from a prompt, so it stays.
    replacements = [
        (step.pattern.get("String", ""), step.content) if step.type == "Replace" else (step.replacement, " ")
        for step in steps
        if step.type in ("Replace", "Metaspace")
    ]
    has_fallback = "ByteFallback" in kinds

    def read(piece: str) -> bytes:
        if has_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes.fromhex(piece[3:5])
            except ValueError:
                pass
        for old, new in replacements:
            if old:
                piece = piece.replace(old, new)
        return piece.encode("utf-8", "replace")

    return read


def _flatten(decoder: _Decoder | None) -> list[_Decoder]:
    if decoder is None:
        return []
    if decoder.type != "Sequence":
        return [decoder]
    return [step for inner in decoder.decoders for step in _flatten(inner)]


def _read_byte_level(piece: str) -> bytes:
    """Undo GPT-2's mapping of bytes to printable characters; other characters stand for themselves."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8", "replace")


@cache
def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 and what follows."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table: dict[str, Any] = {chr(byte): byte for byte in printable}
    table |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return table
