"""Pure. A model as a frontend uses it: tokenizer, chat template and the text of its tokens, built from its files."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from bus.config import ParserName
from bus.errors import Malformed
from bus.messages.fleet import ModelCard
from bus.messages.inference import Probability, Sampling
from bus.subjects import slug
from frontend.parsing import PLAIN, Format, detect_format
from frontend.template import ChatTemplate
from frontend.tokenizer import Tokenizer, load_tokenizer
from frontend.vocabulary import Vocabulary, read_vocabulary

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
WANTED_FILES = frozenset({TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION_CONFIG})
"""Files of a model card that a frontend fetches."""

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

T = TypeVar("T")


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """All that serving a model takes on this side."""

    name: str
    slug: str
    created_at: float
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None: the model has none, and serves completions only."""
    vocabulary: Vocabulary
    format: Format = PLAIN
    """How it writes tool calls and reasoning."""
    marker_tokens: frozenset[int] = frozenset()
    """Special tokens that the format's parser must see as text."""
    sampling: Sampling = Sampling()
    """What holds where a request says nothing."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text is."""
        return len(self.tokenizer.encode(text, add_special_tokens=False)) // 4


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _AddedToken(msgspec.Struct):
    content: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None
    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    unk_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    sep_token: str | _AddedToken | None = None
    cls_token: str | _AddedToken | None = None
    mask_token: str | _AddedToken | None = None


class _GenerationConfig(msgspec.Struct):
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None


_config = msgspec.json.Decoder(_TokenizerConfig)
_generation_config = msgspec.json.Decoder(_GenerationConfig)


def build_model(card: ModelCard, files: Mapping[str, bytes], parser: ParserName = "auto") -> ServedModel:
    """Build a model from the bytes of its files, by name; raise `Malformed`, `InvalidRequest` for files that fail.

    `parser` is as in `detect_format`. Takes up to a second of CPU for a large vocabulary: call it in a thread.
    """
    if TOKENIZER not in files:
        raise Malformed(f"model {card.model!r} comes without {TOKENIZER}")
    config = _decode(_config, TOKENIZER_CONFIG, files.get(TOKENIZER_CONFIG, b"{}"))
    source = _template_source(config, files.get(CHAT_TEMPLATE))
    vocabulary = read_vocabulary(files[TOKENIZER], card.eos_token_ids)
    format = detect_format(source, parser)
    return ServedModel(
        name=card.model,
        slug=slug(card.model),
        created_at=card.created_at,
        max_model_len=card.max_model_len,
        vocab_size=card.vocab_size,
        eos_token_ids=frozenset(card.eos_token_ids),
        tokenizer=load_tokenizer(files[TOKENIZER]),
        template=ChatTemplate(source, _special_tokens(config)) if source else None,
        vocabulary=vocabulary,
        format=format,
        marker_tokens=frozenset(
            token for token in vocabulary.special if vocabulary.raw[token].decode("utf-8", "replace") in format.markers
        ),
        sampling=_default_sampling(_decode(_generation_config, GENERATION_CONFIG, files.get(GENERATION_CONFIG, b"{}"))),
    )


def _decode(decoder: msgspec.json.Decoder[T], name: str, data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"{name}: {error}") from error


def _default_sampling(config: _GenerationConfig) -> Sampling:
    """Return what the model's makers recommend; a model that says it is not to be sampled is greedy."""
    given = {
        "temperature": 0.0 if config.do_sample is False else config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": config.min_p,
        "repetition_penalty": config.repetition_penalty,
    }
    return msgspec.structs.replace(Sampling(), **{name: value for name, value in given.items() if value is not None})


def _template_source(config: _TokenizerConfig, file: bytes | None) -> str:
    """Return the template: the file wins; of several named ones in the configuration, `default`."""
    if file is not None:
        try:
            return file.decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"{CHAT_TEMPLATE} is not UTF-8: {error}") from error
    given = config.chat_template
    if isinstance(given, list):
        named = {each.name: each.template for each in given}
        return named.get("default", next(iter(named.values()), ""))
    return given or ""


def _special_tokens(config: _TokenizerConfig) -> dict[str, str]:
    tokens: dict[str, Any] = {name: getattr(config, name) for name in _SPECIAL_TOKENS}
    return {
        name: token.content if isinstance(token, _AddedToken) else token
        for name, token in tokens.items()
        if token is not None
    }
