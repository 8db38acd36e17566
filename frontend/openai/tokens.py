"""Pure. Bodies and answers of `/tokenize` and `/detokenize`, in vLLM's shapes."""

from typing import Annotated

import msgspec
from msgspec import Meta

from bus.errors import InvalidRequest
from bus.messages.base import pack_u32, unpack_u32
from frontend.model import ServedModel
from frontend.openai.body import BodyDecoder, ChatBody, ChatMessage, Scalar
from frontend.openai.tools import Tool
from frontend.preprocess import render_chat

MAX_TOKENS = 2**20
"""Token ids of one `/detokenize`."""


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /tokenize`: a prompt or a conversation."""

    model: str = ""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    """Null: for a prompt, not for a conversation, whose template writes them."""
    add_generation_prompt: bool | None = None
    """Null: true."""
    return_token_strs: bool | None = None
    tools: Annotated[list[Tool], Meta(max_length=512)] | None = None
    chat_template_kwargs: Annotated[dict[str, Scalar], Meta(max_length=64)] | None = None


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /detokenize`."""

    tokens: Annotated[list[Annotated[int, Meta(ge=0, lt=2**32)]], Meta(max_length=MAX_TOKENS)]
    model: str = ""


class Tokenized(msgspec.Struct, frozen=True):
    """Answer of `POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """Answer of `POST /detokenize`."""

    prompt: str


tokenize_body: BodyDecoder[TokenizeBody] = BodyDecoder(TokenizeBody)
detokenize_body: BodyDecoder[DetokenizeBody] = BodyDecoder(DetokenizeBody)


def tokenize(body: TokenizeBody, model: ServedModel) -> Tokenized:
    """Return the token ids; raise `InvalidRequest` that names the field."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Send either 'prompt' or 'messages'.", param="prompt")
    if body.messages is not None:
        options = dict(body.chat_template_kwargs or {})
        if body.add_generation_prompt is not None:
            options["add_generation_prompt"] = body.add_generation_prompt
        chat = ChatBody(model=body.model, messages=body.messages, tools=body.tools, chat_template_kwargs=options)
        text, adds_special = render_chat(chat, model), bool(body.add_special_tokens)
    else:
        text, adds_special = body.prompt or "", body.add_special_tokens is not False
    tokens = unpack_u32(model.tokenizer.encode(text, add_special_tokens=adds_special)).tolist()
    raw = model.vocabulary.raw
    strings = (
        [raw[token].decode("utf-8", "replace") if token < len(raw) else "" for token in tokens]
        if body.return_token_strs
        else None
    )
    return Tokenized(len(tokens), model.max_model_len, tokens, strings)


def detokenize(body: DetokenizeBody, model: ServedModel) -> Detokenized:
    """Return the text, special tokens included; raise `InvalidRequest` for an id that is none of the model's."""
    highest = max(body.tokens, default=0)
    if highest >= model.vocab_size:
        raise InvalidRequest(
            f"Invalid value for 'tokens': token id {highest} is not below the vocabulary's {model.vocab_size}.",
            param="tokens",
        )
    return Detokenized(model.vocabulary.decode_all(pack_u32(body.tokens)))
