"""Pure. What a plain NATS client may ask: JSON as over HTTP, a short form of it, or nothing but text."""

from typing import NamedTuple

import msgspec

from bus.errors import InvalidRequest, Malformed
from frontend.openai.body import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    SamplingBody,
    chat_body,
    completion_body,
    decode_prompts,
)


class _Peek(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    reply_to: str = ""


class Ask(NamedTuple):
    """A decoded question, and the subject that its answer goes to if the message names none."""

    body: ChatBody | CompletionBody
    reply_to: str


_peek = msgspec.json.Decoder(_Peek)
_SHARED = tuple(field.name for field in msgspec.structs.fields(SamplingBody))


def decode_ask(data: bytes, *, can_chat: bool) -> Ask:
    """Decode a question.

    JSON objects with `messages` are chat completions. Those with a string as `prompt`, and plain text, are asked as
    one user's turn where the model `can_chat`, and completed as they are where it cannot; a list of token ids as
    `prompt` is always completed. Raises `Malformed` and `InvalidRequest`, as the bodies of HTTP do.
    """
    if not data.lstrip().startswith(b"{"):
        return Ask(_turn(_read_text(data), SamplingBody(), can_chat), "")
    try:
        peek = _peek.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not valid JSON: {error}") from error
    if bytes(peek.messages):
        return Ask(chat_body.decode(data)[0], peek.reply_to)
    if not bytes(peek.prompt):
        raise InvalidRequest("Send messages, as in /v1/chat/completions, or a prompt.", param="messages")
    body = completion_body.decode(data)[0]
    prompts = decode_prompts(body.prompt)
    if len(prompts) != 1:
        raise InvalidRequest("Ask one prompt at a time.", param="prompt")
    prompt = prompts[0]
    return Ask(_turn(prompt, body, can_chat) if isinstance(prompt, str) else body, peek.reply_to)


def _read_text(data: bytes) -> str:
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise Malformed(f"The question is neither JSON nor UTF-8 text: {error}") from error
    if not text:
        raise InvalidRequest("The question is empty: send text, or JSON with messages or a prompt.")
    return text


def _turn(text: str, given: SamplingBody, can_chat: bool) -> ChatBody | CompletionBody:
    shared = {name: getattr(given, name) for name in _SHARED}
    if can_chat:
        return ChatBody(messages=[ChatMessage(role="user", content=text)], **shared)
    return CompletionBody(prompt=msgspec.Raw(msgspec.json.encode(text)), **shared)
